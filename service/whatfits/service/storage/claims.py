"""Who has a measurement, in one small row: what an agent asks again and again while it works."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, select, update

from whatfits.estimator.specs import MeasurementStatus
from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.errors import NotFoundError
from whatfits.service.storage.measurements import FINAL_STATUSES
from whatfits.service.storage.tables import MeasurementRow

__all__ = ["Claim", "ClaimStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Where a measurement stands, without what was asked and what came of it."""

    measurement_id: str
    status: MeasurementStatus
    queue: str
    agent: str | None
    attempts: int
    cancel_requested: bool

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL_STATUSES

    def is_held_by(self, agent: str, attempt: int) -> bool:
        """Whether this attempt of this agent is the one that counts."""
        return not self.is_final and self.agent == agent and self.attempts == attempt


class ClaimStore:
    """Claims on measurements in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, id: str) -> Claim:  # noqa: A002 - the name that all records use
        """The claim on a measurement.

        Raises:
            NotFoundError: There is none with this id.
        """
        found = self._select(MeasurementRow.id == id)
        if not found:
            raise NotFoundError("measurement", id)
        return found[0]

    def open(self) -> tuple[Claim, ...]:
        """Of all measurements that are not final."""
        return self._select(MeasurementRow.status.not_in(FINAL_STATUSES))

    def release(self, id: str, agent: str, attempt: int) -> bool:  # noqa: A002
        """Give a measurement back unfinished, as if this attempt had not been; False when it is another's by now."""
        statement = (
            update(MeasurementRow)
            .where(
                MeasurementRow.id == id,
                MeasurementRow.agent == agent,
                MeasurementRow.attempts == attempt,
                MeasurementRow.status == MeasurementStatus.RUNNING,
            )
            .values(status=MeasurementStatus.QUEUED, attempts=MeasurementRow.attempts - 1)
            .returning(MeasurementRow.id)
        )
        with writing(self._engine) as session:
            return session.execute(statement).first() is not None

    def _select(self, condition: ColumnElement[bool]) -> tuple[Claim, ...]:
        row = MeasurementRow
        columns = (row.id, row.status, row.queue, row.agent, row.attempts, row.cancel_requested)
        with reading(self._engine) as session:
            rows = session.execute(select(*columns).where(condition).order_by(row.created_at)).all()
        return tuple(
            Claim(
                measurement_id=id_,
                status=MeasurementStatus(status),
                queue=queue,
                agent=agent,
                attempts=attempts,
                cancel_requested=asked,
            )
            for id_, status, queue, agent, attempts, asked in rows
        )
