"""An agent: a process that measures on the devices of one slot, one measurement at a time. It loads no torch: a child does.

It says every few seconds that it is there; who is silent for long is taken for dead, and what it had is given to others
(`reaper`). When it is told to end (SIGTERM), it ends the child and gives the measurement back at once.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

import structlog

from whatfits.estimator.specs import MeasurementFailure, MeasurementResult, MeasureRequest, Progress
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.profiler.measure.nvml import Library, NvmlUnavailableError, open_nvml
from whatfits.profiler.process_family import end_orphans
from whatfits.service.attempts import Attempts, Runner
from whatfits.service.domain.agents import Agent
from whatfits.service.engine import JOB_SCHEMA_VERSION, Engine, Worker
from whatfits.service.measure_child import run_child
from whatfits.service.settings import Settings
from whatfits.service.slots import Slot, SlotTakenError, find_slot, hold, users_of
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.coordination import database_now
from whatfits.service.storage.database import open_database
from whatfits.service.storage.errors import StorageError
from whatfits.service.storage.measurements import MeasurementStore

__all__ = ["AgentProcess", "leave_process", "run_agent", "run_on"]

_PACKAGES = ("whatfits", "torch", "transformers", "nvidia-ml-py")
_OCCUPIED_POLL_SECONDS = 2.0
_log = structlog.get_logger()


def run_agent(
    settings: Settings, slot_name: str, *, run: Runner | None = None, library: Library | None = None
) -> None:
    """Measure on a slot until told to end; what an agent that was killed left running on this machine is ended first.

    Args:
        settings: Database and intervals.
        slot_name: Such as `gpu0`, `gpu0-7` or `cpu`.
        run: Carries out requests; a child process on the slot's devices when left out.
        library: What answers for the driver, when it is not the driver.

    Raises:
        InputError: The slot is none.
        SlotUnavailableError: The machine has no such devices.
        SlotTakenError: Another agent, or another program, uses them.
        StorageError: The database cannot be used.
    """
    slot = _find(slot_name, library)
    with hold(slot, settings.lock_folder):
        orphans = end_orphans()
        if orphans:
            _log.warning("agent.orphans_ended", count=orphans)
        users = users_of(slot, library)
        if users:
            raise SlotTakenError(f"{slot.name} is in use: {', '.join(users)}; an agent needs it for itself")
        agent = AgentProcess(settings, slot, run or partial(run_on, slot))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.end())
        agent.serve()


def run_on(
    slot: Slot,
    request: MeasureRequest,
    *,
    on_progress: Callable[[Progress], object],
    should_stop: Callable[[], bool],
) -> MeasurementResult | MeasurementFailure | None:
    """Measure on a slot once nobody else uses it, or say who does."""
    until = time.monotonic() + request.timeout_seconds
    while users := users_of(slot):
        if should_stop():
            return None
        if time.monotonic() > until:
            message = f"{slot.name} was in use all the time: {', '.join(users)}"
            return MeasurementFailure(kind=FailureKind.REFUSED, message=message)
        on_progress(Progress(stage="queued", message=f"{slot.name} is in use: {', '.join(users)}"))
        time.sleep(_OCCUPIED_POLL_SECONDS)
    return run_child(
        request, visible_devices=slot.visible_devices, on_progress=on_progress, should_stop=should_stop
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What an agent works with."""

    agents: AgentStore
    attempts: Attempts
    engine: Engine
    worker: Worker


class AgentProcess:
    """An agent, from its registration to its end. One in a process."""

    def __init__(self, settings: Settings, slot: Slot, run: Runner) -> None:
        self._settings = settings
        self._slot = slot
        self._run = run
        self._id = f"{socket.gethostname()}-{slot.name}-{uuid4().hex[:8]}"
        self._told_to_end = threading.Event()
        self._stray = frozenset[str]()

    def end(self) -> None:
        """Tell it to end; from a signal handler or another thread."""
        self._told_to_end.set()

    def serve(self) -> None:
        """Register, measure what comes, and leave when told to."""
        with ExitStack() as opened:
            database = open_database(self._settings.database_url)
            opened.callback(database.dispose)
            engine = Engine(self._settings.database_url)
            opened.callback(engine.close)
            agents = AgentStore(database)
            self._now = partial(database_now, database)
            # Where tables are missing, that is said before anybody counts on this agent.
            agents.list(self._now())
            engine.pending_of(self._id)
            attempts = Attempts(
                agent=self._id,
                store=MeasurementStore(database),
                claims=ClaimStore(database),
                run=self._run,
                give_back=engine.resume,
                store_patience_seconds=self._settings.store_patience_seconds,
            )
            worker = Worker(
                self._settings.database_url,
                agent=self._id,
                queue=self._slot.queue,
                carry_out=attempts.carry_out,
                poll_seconds=self._settings.queue_poll_seconds,
            )
            self._work(_Parts(agents=agents, attempts=attempts, engine=engine, worker=worker))

    def _work(self, parts: _Parts) -> None:
        parts.agents.register(self._describe())
        parts.worker.start()
        try:
            _log.info("agent.started", agent_id=self._id, queue=self._slot.queue, slot=self._slot.name)
            while not self._told_to_end.wait(self._settings.heartbeat_seconds):
                self._say_here(parts)
            _log.info("agent.ending", agent_id=self._id, running=sorted(parts.attempts.in_hand))
        finally:
            parts.attempts.stopping.set()
            parts.worker.stop()
        self._leave(parts)

    def _say_here(self, parts: _Parts) -> None:
        """A heartbeat; and what the engine thinks we have but have not is put back."""
        try:
            if not parts.agents.heartbeat(self._id, self._now()):
                parts.agents.register(self._describe())  # it was silent for so long that it was forgotten
            pending = parts.engine.pending_of(self._id) - parts.attempts.in_hand
            for measurement_id in pending & self._stray:
                _log.warning("measurement.stray", measurement_id=measurement_id)
                parts.engine.resume(measurement_id, self._slot.queue)
            self._stray = pending
        except StorageError as error:
            _log.warning("agent.unheard", error=str(error))

    def _leave(self, parts: _Parts) -> None:
        try:
            for measurement_id in parts.engine.pending_of(self._id):
                parts.engine.resume(measurement_id, self._slot.queue)
            parts.agents.remove(self._id)
        except StorageError as error:
            _log.warning("agent.left_unheard", error=str(error))

    def _describe(self) -> Agent:
        now = self._now()
        return Agent(
            id=self._id,
            queue=self._slot.queue,
            host=socket.gethostname(),
            slot=self._slot.name,
            gpu_uuids=self._slot.gpu_uuids,
            device_name=self._slot.device_name,
            versions=_versions(),
            job_schema_version=JOB_SCHEMA_VERSION,
            started_at=now,
            heartbeat_at=now,
        )


def leave_process(status: int) -> None:
    """End now: threads of the engine that wait for what others measure would keep the process."""
    os._exit(status)


def _find(name: str, library: Library | None) -> Slot:
    if name == "cpu":
        return find_slot(name, None)
    try:
        with open_nvml(library) as nvml:
            return find_slot(name, nvml)
    except NvmlUnavailableError:
        return find_slot(name, None)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
