"""Nothing is lost: what agents that died left is given to others, or ends with the reason.

Each pass holds every measurement that is not final against the queues:

    its agent is gone               -> back into the queue; failed after three attempts; cancelled where that was asked
    its job ended without an outcome -> failed: the store did not take it
    it never came into a queue      -> into the queue (the server died between the two)

Several servers may search: one at a time does (`try_alone`), and all of it may be done again.
"""

import threading
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import Engine as Database

from whatfits.estimator.specs import MeasurementFailure, MeasurementStatus
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.attempts import MAX_ATTEMPTS, lost_too_often
from whatfits.service.engine import JobState, RunningJob
from whatfits.service.settings import Settings
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.claims import Claim, ClaimStore
from whatfits.service.storage.coordination import database_now, try_alone
from whatfits.service.storage.errors import StorageError
from whatfits.service.storage.measurements import MeasurementStore, Outcome

__all__ = ["Queues", "Reaper"]

_FORGET_AFTER = timedelta(hours=1)
"""Silence after which an agent is no longer listed."""
_log = structlog.get_logger()


class Queues(Protocol):
    """The engine, as far as the reaper needs it."""

    def submit(self, measurement_id: str, queue: str) -> None:
        """Put a measurement into a queue, once."""
        ...

    def cancel(self, measurement_id: str) -> None:
        """Take it out."""
        ...

    def resume(self, measurement_id: str, queue: str) -> None:
        """Put it back, whoever has it."""
        ...

    def states(self, measurement_ids: Iterable[str]) -> dict[str, JobState]:
        """Where these stand."""
        ...

    def running(self) -> tuple[RunningJob, ...]:
        """What agents have."""
        ...


class Reaper:
    """Searches for what is left behind, now and then."""

    def __init__(self, database: Database, engine: Queues, settings: Settings) -> None:
        self._database = database
        self._engine = engine
        self._interval = settings.reap_seconds
        self._agents = AgentStore(database, stale_after=settings.stale_after)
        self._store = MeasurementStore(database)
        self._claims = ClaimStore(database)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="reaper", daemon=True)
        self._unsettled = frozenset[str]()

    def start(self) -> None:
        """Search from now on, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Search no more."""
        self._stop.set()
        self._thread.join()

    def search(self) -> None:
        """One pass.

        Raises:
            StorageError: The database does not answer; what was done stays done.
        """
        with try_alone(self._database) as alone:
            if alone:
                self._search()

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.search()
            except StorageError as error:
                _log.warning("reaper.unavailable", error=str(error))
            except Exception:  # noqa: BLE001 - a fault in one pass must not end all of them
                _log.exception("reaper.failed")

    def _search(self) -> None:
        now = database_now(self._database)
        # Jobs before agents: one that was taken in between is of an agent that is listed.
        holders = {job.measurement_id: job.agent for job in self._engine.running()}
        live = frozenset(state.agent.id for state in self._agents.list(now) if state.live)
        claims = self._claims.open()
        orphans = [claim for claim in claims if holders.get(claim.measurement_id) not in {None, *live}]
        for claim in orphans:
            self._settle(claim)
        self._settle_jobless([claim for claim in claims if claim.measurement_id not in holders])
        self._drop_final(holders, live, claims)
        self._forget(now)

    def _settle(self, claim: Claim) -> None:
        """A measurement whose agent is gone."""
        _log.warning("measurement.orphaned", measurement_id=claim.measurement_id, agent_id=claim.agent)
        if claim.cancel_requested:
            self._end(claim, None)
        elif claim.attempts >= MAX_ATTEMPTS:
            self._end(claim, lost_too_often(claim.attempts))
        else:
            self._engine.resume(claim.measurement_id, claim.queue)

    def _settle_jobless(self, claims: list[Claim]) -> None:
        """Measurements that nobody has: waiting, or between the store and the queue for longer than one pass."""
        states = self._engine.states(claim.measurement_id for claim in claims)
        unsettled = {
            claim.measurement_id: claim
            for claim in claims
            if states.get(claim.measurement_id) not in (JobState.WAITING, JobState.RUNNING)
        }
        for measurement_id in self._unsettled & unsettled.keys():
            self._settle_unsettled(unsettled[measurement_id], states.get(measurement_id))
        self._unsettled = frozenset(unsettled)

    def _settle_unsettled(self, claim: Claim, state: JobState | None) -> None:
        if claim.cancel_requested or state is JobState.CANCELLED:
            self._end(claim, None)
        elif state is JobState.ENDED:
            message = "it was carried out, but its outcome was not stored"
            self._end(claim, MeasurementFailure(kind=FailureKind.NOT_STORED, message=message))
        else:
            self._engine.submit(claim.measurement_id, claim.queue)

    def _drop_final(self, holders: dict[str, str], live: frozenset[str], claims: tuple[Claim, ...]) -> None:
        """Jobs of dead agents whose measurement is final: nobody need take them."""
        still_open = {claim.measurement_id for claim in claims}
        for measurement_id, agent in holders.items():
            if agent not in live and measurement_id not in still_open:
                self._engine.cancel(measurement_id)

    def _end(self, claim: Claim, outcome: Outcome) -> None:
        if self._store.finish(claim.measurement_id, outcome):
            status = MeasurementStatus.CANCELLED if outcome is None else MeasurementStatus.FAILED
            _log.warning("measurement.ended", measurement_id=claim.measurement_id, status=status)
        self._engine.cancel(claim.measurement_id)

    def _forget(self, now: datetime) -> None:
        """Agents that nobody has heard for long, whose measurements were settled above."""
        for agent in self._agents.stale(now):
            if now - agent.heartbeat_at > _FORGET_AFTER:
                self._agents.remove(agent.id)
