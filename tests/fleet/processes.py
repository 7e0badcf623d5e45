"""Agents and servers as processes of their own, which tests kill, freeze and end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from whatfits.profiler.process_family import tethered

__all__ = ["QUICK", "Fleet", "Member", "eventually", "open_fleet"]

ROOT = Path(__file__).parents[2]
QUICK = {
    "heartbeat_seconds": 0.3,
    "stale_after_seconds": 4.0,
    "reap_seconds": 0.3,
    "queue_poll_seconds": 0.2,
    "store_patience_seconds": 20.0,
}
"""Settings with intervals that tests need not wait for."""
_SOURCES = ("estimator", "optim_impls", "profiler", "service", "web", ".")

Found = TypeVar("Found")


def eventually(ask: Callable[[], Found], *, seconds: float = 60.0) -> Found:
    """The first answer that is true; how long that takes is not what tests are about."""
    until = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.05)
    return found


class Member:
    """A process of the fleet."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def kill(self) -> None:
        """As the power failing does."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """As a machine that swaps does."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """Ask it to end; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=60)


class Fleet:
    """Processes on one database."""

    def __init__(self, database_url: str, folder: Path, settings: Mapping[str, float] = QUICK) -> None:
        self.runs = folder / "runs"
        self._folder = folder
        self.runs.touch()
        self._members: list[Member] = []
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in _SOURCES),
            "WHATFITS_DATABASE_URL": database_url,
            "WHATFITS_LOCK_FOLDER": str(folder),
            "SCRIPTED_LOG": str(self.runs),
            **{f"WHATFITS_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def start(self, command: Sequence[str]) -> Member:
        """Start a Python program that ends with this process."""
        log = self._folder / f"log-{len(self._members)}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                tethered([sys.executable, *command], parent=os.getpid()),
                env=self._environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        member = Member(process, log)
        self._members.append(member)
        return member

    def start_agent(self) -> Member:
        """Start an agent, and wait until it takes measurements."""
        agent = self.start(["-m", "tests.fleet.scripted_agent"])
        eventually(lambda: "agent.started" in agent.log or self._fail(agent))
        return agent

    def runs_of(self, seed: int) -> list[int]:
        """Process ids of the children that were begun for a request, in order."""
        lines = [line.split() for line in self.runs.read_text().splitlines()]
        return [int(pid) for number, pid in lines if int(number) == seed]

    def end_all(self) -> None:
        """End whatever is left."""
        for member in self._members:
            if member.process.poll() is None:
                member.thaw()
                member.kill()

    @staticmethod
    def _fail(member: Member) -> bool:
        assert member.process.poll() is None, member.log
        return False


@contextmanager
def open_fleet(database_url: str, folder: Path) -> Iterator[Fleet]:
    """A fleet whose processes end with the block."""
    fleet = Fleet(database_url, folder)
    try:
        yield fleet
    finally:
        fleet.end_all()
