"""The description of the API: frozen by a snapshot, and true."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

OPENAPI_SNAPSHOT = Path(__file__).parent / "openapi.json"


@pytest.fixture
def description(api: TestClient) -> dict[str, Any]:
    described: dict[str, Any] = api.get("/api/v1/openapi.json").json()
    return described


def test_the_api_has_not_changed_unnoticed(description: dict[str, Any]) -> None:
    """After a wanted change: `python -m tests.service.api.test_openapi` writes the snapshot anew."""
    description["info"]["version"] = "any"

    assert description == json.loads(OPENAPI_SNAPSHOT.read_text())


def test_every_operation_describes_its_errors_as_problem_documents(description: dict[str, Any]) -> None:
    for operations in description["paths"].values():
        for operation in operations.values():
            errors = {status: body for status, body in operation["responses"].items() if status[0] in "45"}
            assert "500" in errors
            assert ("requestBody" in operation or "parameters" in operation) == ("422" in errors)
            for body in errors.values():
                schema = body["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
    assert "Problem" in description["components"]["schemas"]
    assert "HTTPValidationError" not in description["components"]["schemas"]


def test_no_page_loads_code_from_elsewhere(api: TestClient) -> None:
    for path in ("/docs", "/redoc", "/api/v1/docs"):
        assert api.get(path).status_code == 404


def write_snapshot() -> None:
    from tests.fakes import FakePlanner
    from whatfits.service.app import create_app
    from whatfits.service.settings import Settings

    described = create_app(Settings(), planner=FakePlanner()).openapi()
    described["info"]["version"] = "any"
    OPENAPI_SNAPSHOT.write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_snapshot()
