"""One attempt at a measurement: begin it, run the child, finish it. Whatever dies on the way, it may be called again.

That a measurement ends once is the store's doing: `begin` answers None for a final one, `finish` counts once. A watcher
beside the child reports progress and asks whether the attempt still counts, so that a database that does not answer
delays neither the child nor its time limit.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from whatfits.estimator.specs import MeasurementFailure, MeasurementResult, MeasureRequest, Progress
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.storage.claims import Claim, ClaimStore
from whatfits.service.storage.errors import NotFoundError, StorageError
from whatfits.service.storage.measurements import MeasurementStore, Outcome

__all__ = ["MAX_ATTEMPTS", "Attempts", "Runner", "lost_too_often"]

MAX_ATTEMPTS = 3
"""Times that a measurement is begun before it counts as what takes agents down."""
Answer = TypeVar("Answer")
_log = structlog.get_logger()


class Runner(Protocol):
    """What carries out a request: `measure_child.run_child` with the devices of a slot."""

    def __call__(
        self,
        request: MeasureRequest,
        *,
        on_progress: Callable[[Progress], object],
        should_stop: Callable[[], bool],
    ) -> MeasurementResult | MeasurementFailure | None:
        """The answer; None when `should_stop` said so."""
        ...


def lost_too_often(attempts: int) -> MeasurementFailure:
    """Why it is not tried again."""
    message = f"the agents that ran it went away, {attempts} times; it is not tried again"
    return MeasurementFailure(kind=FailureKind.AGENT_LOST, message=message)


@dataclass(kw_only=True)
class Attempts:
    """Carries out measurements for one agent.

    Attributes:
        agent: Its id.
        run: Carries out a request.
        give_back: Puts a measurement back into its queue.
        store_patience_seconds: How long a finished measurement waits for a store that does not take it.
        poll_seconds: Between two questions whether an attempt still counts.
    """

    agent: str
    store: MeasurementStore
    claims: ClaimStore
    run: Runner
    give_back: Callable[[str, str], None]
    store_patience_seconds: float = 60.0
    poll_seconds: float = 0.4
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the agent is told to end: what runs is ended and given back."""
    in_hand: set[str] = field(default_factory=set)
    """Measurements that are carried out at this moment."""

    def carry_out(self, measurement_id: str) -> None:
        """Carry out a measurement, or do nothing where nothing is left to do."""
        self.in_hand.add(measurement_id)
        structlog.contextvars.bind_contextvars(measurement_id=measurement_id, agent_id=self.agent)
        try:
            self._carry_out(measurement_id)
        except NotFoundError:
            _log.warning("measurement.gone")
        finally:
            self.in_hand.discard(measurement_id)
            structlog.contextvars.clear_contextvars()

    def _carry_out(self, measurement_id: str) -> None:
        claim = self._insist(lambda: self.claims.read(measurement_id))
        if self.stopping.is_set():
            self.give_back(measurement_id, claim.queue)
            return
        if claim.is_final:
            return
        if claim.cancel_requested:
            self._finish(measurement_id, None)
            return
        if claim.attempts >= MAX_ATTEMPTS:
            self._finish(measurement_id, lost_too_often(claim.attempts))
            return
        attempt = self._insist(lambda: self.store.begin(measurement_id, self.agent))
        if attempt is not None:
            self._run(claim, attempt)

    def _run(self, claim: Claim, attempt: int) -> None:
        measurement_id = claim.measurement_id
        _log.info("measurement.began", attempt=attempt)
        request = self._insist(lambda: self.store.get(measurement_id)).request
        with self._watching(measurement_id, attempt) as watch:
            try:
                outcome = self.run(request, on_progress=watch.reports.put, should_stop=watch.says_stop)
            except Exception as error:  # noqa: BLE001 - whatever the machine refuses: the agent goes on
                _log.exception("measurement.raised")
                message = f"the agent could not run it: {type(error).__name__}: {error}"
                outcome = MeasurementFailure(kind=FailureKind.DIED, message=message)
        if outcome is not None:
            if not watch.is_lost:
                self._finish(measurement_id, outcome)
        elif watch.is_cancelled:
            self._finish(measurement_id, None)
        elif self.stopping.is_set():
            self._hand_back(claim, attempt)
        _log.info("measurement.left", attempt=attempt, lost=watch.is_lost)

    def _hand_back(self, claim: Claim, attempt: int) -> None:
        """What an agent leaves because it is told to end does not count as an attempt."""
        if self.claims.release(claim.measurement_id, self.agent, attempt):
            self.give_back(claim.measurement_id, claim.queue)

    def _finish(self, measurement_id: str, outcome: Outcome) -> None:
        """Keep the outcome; where the store does not take it, keep at least that."""
        try:
            self._insist(lambda: self.store.finish(measurement_id, outcome))
        except StorageError as error:
            _log.exception("measurement.not_stored")
            message = f"it ended, but its outcome could not be stored: {error}"
            failure = MeasurementFailure(kind=FailureKind.NOT_STORED, message=message)
            self.store.finish(measurement_id, failure)

    def _insist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask the store again while it does not answer, for a while."""
        until = time.monotonic() + self.store_patience_seconds
        while True:
            try:
                return ask()
            except StorageError as error:
                if time.monotonic() > until or self.stopping.is_set():
                    raise
                _log.warning("store.unavailable", error=str(error))
                self.stopping.wait(min(1.0, self.store_patience_seconds / 10))

    @contextmanager
    def _watching(self, measurement_id: str, attempt: int) -> Iterator["_Watch"]:
        watch = _Watch(self, measurement_id, attempt)
        thread = threading.Thread(target=watch.follow, name=f"watch-{measurement_id}", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            watch.ended.set()
            thread.join(timeout=self.store_patience_seconds)
            watch.look()


class _Watch:
    """Beside a running child: reports go out, and word comes in that it is to stop."""

    def __init__(self, attempts: Attempts, measurement_id: str, attempt: int) -> None:
        self._attempts = attempts
        self._id = measurement_id
        self._attempt = attempt
        self.reports: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.is_cancelled = False
        self.is_lost = False

    def says_stop(self) -> bool:
        """Asked by whoever holds the child."""
        return self.is_cancelled or self.is_lost or self._attempts.stopping.is_set()

    def follow(self) -> None:
        """Until the child has ended."""
        while not self.ended.wait(self._attempts.poll_seconds):
            self.look()
            self._report()
        self._report()

    def look(self) -> None:
        """Ask whether the attempt still counts; no answer changes nothing."""
        try:
            claim = self._attempts.claims.read(self._id)
        except NotFoundError:
            self.is_lost = True
        except StorageError as error:
            _log.warning("store.unavailable", error=str(error))
        else:
            self.is_lost = not claim.is_held_by(self._attempts.agent, self._attempt)
            self.is_cancelled = claim.cancel_requested and not self.is_lost

    def _report(self) -> None:
        """Store what was reported; what the store does not take is missing from the progress, and nothing else."""
        while not self.reports.empty():
            progress = self.reports.get_nowait()
            try:
                if not self.is_lost:
                    self._attempts.store.add_progress(self._id, progress)
            except (NotFoundError, StorageError) as error:
                _log.warning("progress.not_stored", error=str(error))
