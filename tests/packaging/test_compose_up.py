"""The commands of docker-compose.yml, run without Docker: PostgreSQL with a password, migrations, the server and two agents."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from tests.fleet.processes import eventually
from tests.postgres import binaries_or_skip

ROOT = Path(__file__).parents[2]
SOURCES = ("estimator", "optim_impls", "profiler", "service", "web", ".")
MINUTE = 60.0
REQUEST = {
    "spec": {
        "model": "llama-60m",
        "training": {"precision": "fp32", "seq_len": 32, "optimizer": {"name": "adamw"}},
        "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
    },
    "device": "cpu",
    "num_layers": 1,
    "warmup_steps": 1,
    "measured_steps": 2,
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the script says once everything is up; afterwards nothing of it is left."""
    binaries_or_skip()
    log = tmp_path_factory.mktemp("compose") / "log"
    command = [
        sys.executable,
        "-m",
        "docker.run_without_docker",
        "--profile",
        "cpu",
        "--scale",
        "agent-cpu=2",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES)}
    with log.open("w") as errors:
        script = subprocess.Popen(
            [*command, "--port", "0"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert script.stdout is not None
    line = script.stdout.readline()
    assert line, log.read_text()
    said: dict[str, Any] = json.loads(line)

    yield said

    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=2 * MINUTE) == 0, log.read_text()
    script.stdout.close()
    assert [name for name, pid in said["processes"].items() if Path(f"/proc/{pid}").exists()] == []
    assert not Path(said["logs"]).exists()


@pytest.fixture
def client(up: dict[str, Any]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=up["url"], timeout=MINUTE) as client:
        yield client


def test_the_services_of_the_file_are_up(up: dict[str, Any], client: httpx2.Client) -> None:
    assert set(up["processes"]) == {"service", "agent-cpu-1", "agent-cpu-2"}
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_the_database_lets_nobody_in_without_the_password(up: dict[str, Any]) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(up["database_url"], connect_timeout=10)


def test_the_server_answers_what_is_sent_to_loopback_alone(client: httpx2.Client) -> None:
    assert client.get("/healthz", headers={"Host": "box.example.org:8000"}).status_code == 421


def test_both_agents_are_registered(client: httpx2.Client) -> None:
    def live() -> list[dict[str, Any]]:
        return [agent for agent in client.get("/api/v1/agents").json()["items"] if agent["live"]]

    agents = eventually(lambda: found if len(found := live()) == 2 else [])
    assert {agent["queue"] for agent in agents} == {"cpu/x1"}


def test_measurements_asked_for_over_http_are_made(client: httpx2.Client) -> None:
    eventually(lambda: client.get("/api/v1/agents").json()["items"])
    asked = [client.post("/api/v1/measurements", json={**REQUEST, "seed": seed}) for seed in (1, 2)]
    assert [answer.status_code for answer in asked] == [202, 202]

    def read_final(location: str) -> dict[str, Any]:
        measurement: dict[str, Any] = client.get(location).json()
        return {} if measurement["status"] in ("queued", "running") else measurement

    locations = [answer.headers["Location"] for answer in asked]
    done = [eventually(partial(read_final, location), seconds=4 * MINUTE) for location in locations]
    assert [measurement["status"] for measurement in done] == ["succeeded", "succeeded"], done
    first, second = (measurement["result"] for measurement in done)
    assert first["peak_requested_bytes"] == second["peak_requested_bytes"] > 4 * first["num_parameters"]
    assert len(first["times"]["step"]) == REQUEST["measured_steps"]
    listed = client.get("/api/v1/measurements", params={"limit": 2}).json()["items"]
    assert {item["id"] for item in listed} == {measurement["id"] for measurement in done}
