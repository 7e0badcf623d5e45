"""Measurements: asked once, begun at most a few times, finished exactly once.

Every change of state is one UPDATE whose condition names the states it may leave, so that of several processes that try
exactly one succeeds, whatever the order in which they come.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, func, select, tuple_, update
from sqlalchemy.orm import Session

from whatfits.estimator.specs import (
    Measurement,
    MeasurementFailure,
    MeasurementResult,
    MeasurementStatus,
    MeasureRequest,
    Progress,
)
from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.errors import ConflictError, NotFoundError
from whatfits.service.storage.paging import DEFAULT_LIMIT, Page, Position, check_limit
from whatfits.service.storage.rows import (
    content_hash,
    insert_new,
    load_measurement,
    measurement_of,
    require_measurement,
    result_columns,
    select_measurements,
    store_measurement,
)
from whatfits.service.storage.tables import IdempotencyKeyRow, Json, MeasurementRow, ProgressRow

__all__ = ["FINAL_STATUSES", "MeasurementFilters", "MeasurementStore", "Outcome"]

FINAL_STATUSES = (MeasurementStatus.SUCCEEDED, MeasurementStatus.FAILED, MeasurementStatus.CANCELLED)
_OPEN = (MeasurementStatus.QUEUED, MeasurementStatus.RUNNING)

Outcome = MeasurementResult | MeasurementFailure | None
"""How a measurement ended; None is that it was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementFilters:
    """What listed measurements have in common; None admits everything."""

    status: MeasurementStatus | None = None
    queue: str | None = None
    model: str | None = None
    optimizer: str | None = None
    device_name: str | None = None
    campaign: str | None = None
    source: str | None = None
    agent: str | None = None


class MeasurementStore:
    """Measurements in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self, measurement: Measurement, *, idempotency_key: str | None = None
    ) -> tuple[Measurement, bool]:
        """Store a measurement; with a key that was used for the same question, return the one stored then.

        Returns:
            The stored measurement, and whether it is the one given.

        Raises:
            ConflictError: The key was used for another question, or the id is taken.
        """
        body_hash = _body_hash(measurement.request, measurement.campaign)
        with writing(self._engine) as session:
            first = None if idempotency_key is None else _first_of_key(session, idempotency_key, body_hash)
            if first is not None:
                return first, False
            if not store_measurement(session, measurement):
                raise ConflictError(f"there is a measurement {measurement.id!r} already")
            if idempotency_key is None or _keep_key(session, idempotency_key, body_hash, measurement):
                return measurement, True
            session.rollback()
        # Another request with the key was stored while this one was.
        with reading(self._engine) as session:
            first = _first_of_key(session, str(idempotency_key), body_hash)
            assert first is not None
            return first, False

    def first_with_key(self, key: str, request: MeasureRequest, campaign: str | None) -> Measurement | None:
        """The measurement that was stored with a key; None when it is new.

        Raises:
            ConflictError: The key was used for another question.
        """
        with reading(self._engine) as session:
            return _first_of_key(session, key, _body_hash(request, campaign))

    def get(self, id: str) -> Measurement:  # noqa: A002 - the name that all records use
        """The measurement with this id.

        Raises:
            NotFoundError: There is none.
        """
        with reading(self._engine) as session:
            return load_measurement(session, id)

    def list(
        self,
        filters: MeasurementFilters | None = None,
        *,
        cursor: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page[Measurement]:
        """A page of measurements, newest first.

        Raises:
            InputError: The cursor or the limit is not one.
        """
        statement = select_measurements().limit(check_limit(limit) + 1)
        statement = statement.order_by(MeasurementRow.created_at.desc(), MeasurementRow.id.desc())
        for name, value in asdict(filters or MeasurementFilters()).items():
            if value is not None:
                statement = statement.where(getattr(MeasurementRow, name) == value)
        if cursor is not None:
            place = Position.from_cursor(cursor)
            before = tuple_(MeasurementRow.created_at, MeasurementRow.id) < (place.created_at, place.id)
            statement = statement.where(before)
        with reading(self._engine) as session:
            rows = session.execute(statement).all()
            found = [measurement_of(row, spec, environment) for row, spec, environment in rows]
        items = tuple(found[:limit])
        if len(found) <= limit:
            return Page(items=items, next_cursor=None)
        last = Position(created_at=items[-1].created_at, id=items[-1].id)
        return Page(items=items, next_cursor=last.to_cursor())

    def begin(self, id: str, agent: str) -> int | None:  # noqa: A002
        """Note that an agent begins it; the number of this attempt, or None when it is final already.

        Raises:
            NotFoundError: There is none.
        """
        statement = (
            update(MeasurementRow)
            .where(MeasurementRow.id == id, MeasurementRow.status.in_(_OPEN))
            .values(
                status=MeasurementStatus.RUNNING,
                agent=agent,
                attempts=MeasurementRow.attempts + 1,
                started_at=func.coalesce(MeasurementRow.started_at, datetime.now(UTC)),
            )
            .returning(MeasurementRow.attempts)
        )
        with writing(self._engine) as session:
            attempts = session.execute(statement).scalar_one_or_none()
            if attempts is None:
                require_measurement(session, id)
            return attempts

    def finish(self, id: str, outcome: Outcome) -> bool:  # noqa: A002
        """Make a measurement final; whether this call did it: False when it was final before.

        Raises:
            NotFoundError: There is none.
        """
        with writing(self._engine) as session:
            statement = (
                update(MeasurementRow)
                .where(MeasurementRow.id == id, MeasurementRow.status.in_(_OPEN))
                .values(**_final_columns(session, outcome), finished_at=datetime.now(UTC))
                .returning(MeasurementRow.id)
            )
            done = session.execute(statement).first() is not None
            if not done:
                require_measurement(session, id)
            return done

    def add_progress(self, id: str, progress: Progress) -> int:  # noqa: A002
        """Append a report; its number, counted from one without gaps for each measurement.

        Raises:
            NotFoundError: There is no such measurement.
        """
        # The row's lock makes numbers visible in their order: who reads on from a number misses none.
        count = (
            update(MeasurementRow)
            .where(MeasurementRow.id == id)
            .values(progress_count=MeasurementRow.progress_count + 1)
            .returning(MeasurementRow.progress_count)
        )
        with writing(self._engine) as session:
            sequence = session.execute(count).scalar_one_or_none()
            if sequence is None:
                raise NotFoundError("measurement", id)
            content = progress.model_dump(mode="json")
            session.add(ProgressRow(measurement_id=id, sequence=sequence, progress=content))
            return sequence

    def progress_after(self, id: str, sequence: int) -> tuple[tuple[int, Progress], ...]:  # noqa: A002
        """The reports after a number, with theirs, in order.

        Raises:
            NotFoundError: There is no such measurement.
        """
        statement = (
            select(ProgressRow.sequence, ProgressRow.progress)
            .where(ProgressRow.measurement_id == id, ProgressRow.sequence > sequence)
            .order_by(ProgressRow.sequence)
        )
        with reading(self._engine) as session:
            rows = session.execute(statement).all()
            if not rows:
                require_measurement(session, id)
        return tuple((number, Progress.model_validate(content)) for number, content in rows)

    def request_cancel(self, id: str) -> bool:  # noqa: A002
        """Ask for a measurement to be stopped; False when it is final already.

        Raises:
            NotFoundError: There is none.
        """
        statement = (
            update(MeasurementRow)
            .where(MeasurementRow.id == id, MeasurementRow.status.in_(_OPEN))
            .values(cancel_requested=True)
            .returning(MeasurementRow.id)
        )
        with writing(self._engine) as session:
            asked = session.execute(statement).first() is not None
            if not asked:
                require_measurement(session, id)
            return asked

    def cancel_requested(self, id: str) -> bool:  # noqa: A002
        """Whether somebody asked for it to be stopped.

        Raises:
            NotFoundError: There is none.
        """
        statement = select(MeasurementRow.cancel_requested).where(MeasurementRow.id == id)
        with reading(self._engine) as session:
            asked = session.execute(statement).scalar_one_or_none()
        if asked is None:
            raise NotFoundError("measurement", id)
        return asked


def _body_hash(request: MeasureRequest, campaign: str | None) -> str:
    """Of what a client sends: with the same key it must be the same."""
    return content_hash({"request": request.model_dump(mode="json"), "campaign": campaign})


def _first_of_key(session: Session, key: str, body_hash: str) -> Measurement | None:
    """What was stored with a key, if it is the same question."""
    row = session.get(IdempotencyKeyRow, key)
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise ConflictError(f"the idempotency key {key!r} was used for another measurement")
    return load_measurement(session, row.measurement_id)


def _keep_key(session: Session, key: str, body_hash: str, measurement: Measurement) -> bool:
    values = {
        "key": key,
        "body_hash": body_hash,
        "measurement_id": measurement.id,
        "created_at": datetime.now(UTC),
    }
    return insert_new(session, IdempotencyKeyRow, values)


def _final_columns(session: Session, outcome: Outcome) -> Json:
    """The columns that an outcome decides."""
    match outcome:
        case MeasurementResult():
            return {"status": MeasurementStatus.SUCCEEDED, **result_columns(session, outcome)}
        case MeasurementFailure():
            return {"status": MeasurementStatus.FAILED, "failure": outcome.model_dump(mode="json")}
        case None:
            return {"status": MeasurementStatus.CANCELLED}
