"""What may be asked of measurements: submit, look up, list, cancel; and what an agent is needed for."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Protocol
from uuid import uuid4

from pydantic import Field

from whatfits.estimator.catalog.config_models import UntracedModelError
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs import (
    Estimate,
    Measurement,
    MeasurementStatus,
    MeasureRequest,
    Progress,
    queue_name,
)
from whatfits.profiler.measure.local import expected, resolved_request
from whatfits.service.domain.agents import AgentState
from whatfits.service.domain.planner import Planner
from whatfits.service.domain.questions import check_remote_model
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.errors import ConflictError
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore
from whatfits.service.storage.paging import Page

__all__ = ["Jobs", "Measurements", "NoAgentError", "Submission", "cancel", "naming", "with_warning"]


class Submission(MeasureRequest):
    """A run to measure, and what it is part of."""

    campaign: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Name of the campaign it belongs to; measurements are listed by it."""


class NoAgentError(ConflictError):
    """No agent that is there could carry it out."""


class Jobs(Protocol):
    """The queues, as far as whoever asks for a measurement needs them."""

    def submit(self, measurement_id: str, queue: str) -> None:
        """Put a measurement into a queue, once."""
        ...

    def cancel(self, measurement_id: str) -> None:
        """Take it out."""
        ...


_ENDED = {
    MeasurementStatus.SUCCEEDED: "succeeded",
    MeasurementStatus.FAILED: "failed",
    MeasurementStatus.CANCELLED: "was cancelled",
}

_OUTSIDE_SPEC = ("num_layers",)


def cancel(measurement_id: str, *, store: MeasurementStore, claims: ClaimStore, jobs: Jobs) -> None:
    """Stop a measurement, or ask its agent to.

    Raises:
        NotFoundError: There is none with this id.
        ConflictError: It has ended.
    """
    if not store.request_cancel(measurement_id):
        status = claims.read(measurement_id).status
        raise ConflictError(f"measurement {measurement_id!r} has ended: it {_ENDED[status]}")
    if claims.read(measurement_id).status is MeasurementStatus.QUEUED:
        # An agent that takes it at this moment finds it final, or notices within half a second.
        store.finish(measurement_id, None)
        jobs.cancel(measurement_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The rules for measurements, over the store and the queues."""

    store: MeasurementStore
    claims: ClaimStore
    agents: AgentStore
    jobs: Jobs
    planner: Planner
    now: Callable[[], datetime]
    """By the clock that agents' signs of life are dated with."""
    job_schema_version: str
    """The form of jobs that agents must know."""

    def submit(
        self,
        submission: Submission,
        *,
        idempotency_key: str | None = None,
        queue_when_unavailable: bool = False,
    ) -> Measurement:
        """Store a measurement and put it into the queue of its device.

        Args:
            submission: What is measured.
            idempotency_key: With the key of an earlier submission of the same, that one is returned.
            queue_when_unavailable: Take it although no agent could carry it out, with a warning.

        Raises:
            InputError: Part of it cannot be used.
            NoAgentError: Nobody could carry it out.
            ConflictError: The key was used for something else.
        """
        request = self._resolve(submission)
        if idempotency_key is not None:
            first = self.store.first_with_key(idempotency_key, request, submission.campaign)
            if first is not None:
                return self._enqueue(first)
        absence = self.find_absence(queue_name(request), refuse=not queue_when_unavailable)
        draft = self._draft(submission, request)
        return self.keep(with_warning(draft, absence), idempotency_key=idempotency_key)

    def draft(self, submission: Submission) -> Measurement:
        """What would be stored, with its estimate.

        Raises:
            InputError: Part of it cannot be used.
        """
        return self._draft(submission, self._resolve(submission))

    def keep(self, draft: Measurement, *, idempotency_key: str | None = None) -> Measurement:
        """Store what was drafted and put it into its queue; with the key of an earlier one, that one is returned.

        Raises:
            ConflictError: The key was used for something else.
        """
        return self._enqueue(self.store.add(draft, idempotency_key=idempotency_key)[0])

    def get(self, measurement_id: str) -> Measurement:
        """One measurement.

        Raises:
            NotFoundError: There is none with this id.
        """
        return self.store.get(measurement_id)

    def list(self, filters: MeasurementFilters, *, cursor: str | None, limit: int) -> Page[Measurement]:
        """A page, newest first.

        Raises:
            InputError: The cursor is none.
        """
        return self.store.list(filters, cursor=cursor, limit=limit)

    def cancel(self, measurement_id: str) -> Measurement:
        """Stop a measurement: at once where it waits, else as soon as its agent has ended it.

        Raises:
            NotFoundError: There is none with this id.
            ConflictError: It has ended.
        """
        cancel(measurement_id, store=self.store, claims=self.claims, jobs=self.jobs)
        return self.store.get(measurement_id)

    def progress_after(self, measurement_id: str, sequence: int) -> tuple[tuple[int, Progress], ...]:
        """The reports after a number.

        Raises:
            NotFoundError: There is no measurement with this id.
        """
        return self.store.progress_after(measurement_id, sequence)

    def list_agents(self) -> tuple[AgentState, ...]:
        """All agents that were heard in the last hour."""
        return self.agents.list(self.now())

    def count_live_agents(self) -> dict[str, int]:
        """Agents that are there and know this form of jobs, by queue."""
        queues = [
            state.agent.queue
            for state in self.list_agents()
            if state.live and state.agent.job_schema_version == self.job_schema_version
        ]
        return dict(sorted(Counter(queues).items()))

    def _enqueue(self, measurement: Measurement) -> Measurement:
        """Again where it was done before: the one who did may have died between storing and this."""
        if measurement.status is MeasurementStatus.QUEUED:
            self.jobs.submit(measurement.id, measurement.queue)
        return measurement

    def find_absence(self, queue: str, *, refuse: bool) -> str | None:
        """A sentence where no agent that is there serves a queue.

        Raises:
            NoAgentError: It is so, and that is to be refused.
        """
        counts = self.count_live_agents()
        if queue in counts:
            return None
        there = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
        sentence = f"No agent that is there serves {queue}; registered: {there}."
        if refuse:
            raise NoAgentError(f"{sentence} With when_unavailable=queue it waits until there is one.")
        return sentence

    def _draft(self, submission: Submission, request: MeasureRequest) -> Measurement:
        estimate, unestimated = self._estimate(submission)
        return Measurement(
            id=str(uuid4()),
            campaign=submission.campaign,
            status=MeasurementStatus.QUEUED,
            queue=queue_name(request),
            request=request,
            estimate=estimate,
            warning=unestimated,
            created_at=datetime.now(UTC),
        )

    def _resolve(self, submission: Submission) -> MeasureRequest:
        """With everything filled in; a config that nobody has traced yet is known once it was asked about."""
        request = _request_of(submission)
        with naming("spec", known=_OUTSIDE_SPEC):
            check_remote_model(request.spec.model)
            try:
                return resolved_request(request)
            except UntracedModelError:
                with suppress(UnsupportedError):
                    expected(request, self.planner.estimate)
                return resolved_request(request)

    def _estimate(self, submission: Submission) -> tuple[Estimate | None, str | None]:
        """The estimate, or why there is none."""
        try:
            with naming("spec", known=_OUTSIDE_SPEC):
                return expected(_request_of(submission), self.planner.estimate), None
        except UnsupportedError as error:
            return None, f"Not estimated: {error}."


def with_warning(measurement: Measurement, warning: str | None) -> Measurement:
    """The measurement with one more sentence of warning, before its own."""
    both = " ".join(text for text in (warning, measurement.warning) if text)
    return measurement.model_copy(update={"warning": both or None})


def _request_of(submission: Submission) -> MeasureRequest:
    return MeasureRequest.model_validate(submission.model_dump(exclude={"campaign"}))


@contextmanager
def naming(place: str, *, known: tuple[str, ...] = (), where: str = "") -> Iterator[None]:
    """Errors about a part of what was sent, as errors about the whole.

    Args:
        place: Of the part.
        known: Fields that the whole has itself.
        where: The part in words.
    """
    try:
        yield
    except InputError as error:
        if error.field in known:
            raise
        raise error.at(f"{place}.{error.field}", where=where) from error
