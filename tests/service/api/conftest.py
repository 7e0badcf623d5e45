"""Servers of measurements, with and without an agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import copy_sqlite
from tests.service.api.desk import Desk, open_desk, working_agent


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where children note that they ran."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("SCRIPTED_LOG", str(runs))
    return runs


@pytest.fixture
def lonely(ready_url: str, runs: Path) -> Iterator[Desk]:
    """A server without agents."""
    with open_desk(ready_url, runs) as desk:
        yield desk


@pytest.fixture
def desk(lonely: Desk, ready_url: str) -> Iterator[Desk]:
    """A server with an agent for the CPU."""
    with working_agent(lonely, ready_url):
        yield lonely


@pytest.fixture(scope="module")
def on_sqlite(ready_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A server without agents, on SQLite, for all tests of a file that store nothing."""
    folder = tmp_path_factory.mktemp("server")
    with open_desk(f"sqlite:///{copy_sqlite(ready_sqlite, folder)}", folder / "runs") as desk:
        yield desk
