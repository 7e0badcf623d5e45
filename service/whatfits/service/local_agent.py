"""The agent that a server starts beside itself, on the same database; it ends with the server, however that ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import structlog

from whatfits.profiler.measure.nvml import NvmlUnavailableError, open_nvml
from whatfits.profiler.process_family import has_ended, tethered
from whatfits.service.measure_child import missing_extra
from whatfits.service.settings import Settings
from whatfits.service.slots import machine_slots

__all__ = ["AGENT_COMMAND", "LocalAgent", "run_agents", "slots_here"]

AGENT_COMMAND = (sys.executable, "-c", "from whatfits.service.cli import main; main()", "agent")
"""Starts an agent with this interpreter; the slot follows."""
_POLL_SECONDS = 0.2
_STOP_SECONDS = 10.0
_RESTART_SECONDS = 5.0
_RARELY = 12
_log = structlog.get_logger()


class LocalAgent:
    """One agent process, started again when it dies."""

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str] | None = None,
        *,
        restart_seconds: float = _RESTART_SECONDS,
    ) -> None:
        """Prepare; `command` starts another program in its place."""
        self._restart_seconds = restart_seconds
        self._settings = settings
        self._command = command
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it, or say why there is none."""
        missing = missing_extra() if self._command is None else None
        if missing is not None:
            _log.warning("agent.none", reason=f"{missing}; the server runs without a local agent")
            return
        # The child is tied to the life of the thread that starts it.
        self._thread = threading.Thread(target=self._follow, name="local-agent", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; what it measures is given back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        command = self._command or (*AGENT_COMMAND, "--slot", slots_here()[0])
        while not self._stop.is_set():
            started = time.monotonic()
            status = self._run(command)
            if self._stop.is_set():
                return
            # One that could not even start is tried less often.
            lived = time.monotonic() - started
            wait = self._restart_seconds * (_RARELY if lived < self._restart_seconds else 1)
            _log.warning("agent.ended", status=status, again_in_seconds=wait)
            self._stop.wait(wait)

    def _run(self, command: Sequence[str]) -> int:
        environment = {**os.environ, "WHATFITS_DATABASE_URL": self._settings.database_url}
        process = subprocess.Popen(  # noqa: S603  (our own program)
            tethered(command, parent=os.getpid()), env=environment, stdin=subprocess.DEVNULL
        )
        while not has_ended(process):
            if self._stop.wait(_POLL_SECONDS):
                process.terminate()
                break
        try:
            return process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def slots_here() -> tuple[str, ...]:
    """A slot for each GPU that the driver knows, or the CPU."""
    try:
        with open_nvml() as nvml:
            return machine_slots(nvml)
    except NvmlUnavailableError:
        return machine_slots(None)


def run_agents(settings: Settings, slots: Sequence[str]) -> int:
    """Run an agent for each slot until told to end; the highest exit status of them.

    One that ends by itself leaves the others at work.
    """
    environment = {**os.environ, "WHATFITS_DATABASE_URL": settings.database_url}
    processes = [
        subprocess.Popen(  # noqa: S603  (our own program)
            tethered((*AGENT_COMMAND, "--slot", slot), parent=os.getpid()), env=environment
        )
        for slot in slots
    ]

    def end_all(*_: object) -> None:
        for process in processes:
            process.terminate()

    before = {number: signal.signal(number, end_all) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return max(abs(process.wait()) for process in processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
