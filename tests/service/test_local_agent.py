"""The agent beside a server: started, started again when it dies, ended with the server, and told its database."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import eventually
from whatfits.service.local_agent import LocalAgent, run_agents
from whatfits.service.settings import Settings

PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath("ended").touch(), sys.exit(0)))
folder.joinpath(f"{os.getpid()}.pid").write_text(os.environ["WHATFITS_DATABASE_URL"])
time.sleep(600)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LocalAgent]:
    settings = Settings(database_url="sqlite:///that.db")
    agent = LocalAgent(
        settings, [sys.executable, "-I", "-S", "-c", PROGRAM, str(tmp_path)], restart_seconds=0.01
    )
    agent.start()
    yield agent
    agent.stop()


def pids(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid") if path.read_text()]


def test_it_is_told_the_database_and_ended_with_the_server(agent: LocalAgent, tmp_path: Path) -> None:
    (pid,) = eventually(lambda: pids(tmp_path))

    agent.stop()

    assert (tmp_path / f"{pid}.pid").read_text() == "sqlite:///that.db"
    assert (tmp_path / "ended").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_dies_is_started_again(agent: LocalAgent, tmp_path: Path) -> None:

    (first,) = eventually(lambda: pids(tmp_path))
    os.kill(first, signal.SIGKILL)

    eventually(lambda: len(pids(tmp_path)) == 2)


def test_agents_that_cannot_start_give_their_exit_status(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/w.db")

    assert run_agents(settings, ["gpux", "gpuy"]) == 2
