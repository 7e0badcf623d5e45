"""A client of a server of measurements, and what its agents ran."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from tests.fleet.processes import QUICK, eventually
from tests.fleet.scripts import Script, make_body, run_scripted
from whatfits.service.agent import AgentProcess
from whatfits.service.app import create_app
from whatfits.service.settings import Settings
from whatfits.service.slots import find_slot

__all__ = ["PATH", "Desk", "open_desk", "working_agent"]

PATH = "/api/v1/measurements"


@dataclass(kw_only=True)
class Desk:
    """A client of a server, and what its agents ran."""

    client: TestClient
    planner: FakePlanner
    runs: Path

    def post(self, body: dict[str, Any], *, query: str = "", key: str | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post(PATH + query, json=body, headers=headers)

    def submit(self, script: int = Script.SUCCEED, **changes: Any) -> str:
        answer = self.post(make_body(script, **changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def get(self, id_: str) -> Any:
        return self.client.get(f"{PATH}/{id_}").json()

    def status(self, id_: str) -> str:
        return str(self.get(id_)["status"])

    def final(self, id_: str) -> Any:
        eventually(lambda: self.status(id_) not in ("queued", "running"))
        return self.get(id_)

    def events(self, id_: str, after: int | None = None) -> list[tuple[str, str | None, Any]]:
        """Name, id and data of every event to the end of the stream."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        text = self.client.get(f"{PATH}/{id_}/events", headers=headers).text
        found = []
        for block in text.replace("\r\n", "\n").strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if fields:
                found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
        return found


@contextmanager
def open_desk(database_url: str, runs: Path) -> Iterator[Desk]:
    """A server without agents; children note in the file that they ran, if the environment names it."""
    runs.touch()
    planner = FakePlanner()
    settings = Settings.model_validate({"database_url": database_url, **QUICK})
    with TestClient(create_app(settings, planner=planner)) as client:
        yield Desk(client=client, planner=planner, runs=runs)


@contextmanager
def working_agent(desk: Desk, database_url: str) -> Iterator[None]:
    """An agent for the CPU, in a thread of this process."""
    eventually(lambda: desk.client.get("/readyz").status_code == 200)
    settings = Settings.model_validate({"database_url": database_url, **QUICK})
    agent = AgentProcess(settings, find_slot("cpu", None), run_scripted)
    thread = threading.Thread(target=agent.serve)
    thread.start()
    try:
        eventually(lambda: desk.client.get("/readyz").json()["live_agents"] == {"cpu/x1": 1})
        yield
    finally:
        agent.end()
        thread.join()
