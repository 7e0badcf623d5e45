"""Only requests sent to this machine by a loopback name are answered."""

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.service.api.middleware import LoopbackHostMiddleware
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(LoopbackHostMiddleware(build_server_app(Settings(), planner=FakePlanner())))


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:8765", "127.0.0.2", "[::1]", "[::1]:8000"]
)
@pytest.mark.parametrize("path", ["/healthz", "/", "/api/v1/gpus"])
def test_loopback_names_are_answered(client: TestClient, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["example.org", "127.0.0.1.example.org", "localhost.example.org:8000", "192.168.1.10:8000", "0.0.0.0", "service:8000", "", "[", "[::1", "127.0.0.1@example.org"],
)  # fmt: skip
def test_other_names_get_a_problem_that_says_the_way(client: TestClient, host: str) -> None:
    response = client.get("/api/v1/gpus", headers={"Host": host})

    assert (response.status_code, response.json()["type"]) == (421, "urn:whatfits:problem:misdirected")
    assert response.headers["content-type"] == "application/problem+json"
    assert "ssh -L" in response.json()["detail"]
