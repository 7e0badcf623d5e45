"""What else is kept: calibrations and profiles that were traced on demand."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select

from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.errors import ConflictError
from whatfits.service.storage.rows import insert_new
from whatfits.service.storage.tables import CalibrationRow, TracedProfileRow

__all__ = ["Calibration", "CalibrationStore", "TracedProfileStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Constants fitted to measurements of a kind of device."""

    id: str
    device: str
    """Catalog id of the GPU."""
    content: dict[str, Any]  # Any: the JSON that the fit wrote
    created_at: datetime


class CalibrationStore:
    """Calibrations in a database; none is changed, the newest of a device counts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, calibration: Calibration) -> None:
        """Store a calibration.

        Raises:
            ConflictError: Its id is taken.
        """
        values = {
            "id": calibration.id,
            "device": calibration.device,
            "calibration": calibration.content,
            "created_at": calibration.created_at,
        }
        with writing(self._engine) as session:
            if not insert_new(session, CalibrationRow, values):
                raise ConflictError(f"there is a calibration {calibration.id!r} already")

    def newest(self, device: str) -> Calibration | None:
        """The newest calibration of a kind of device."""
        order = (CalibrationRow.created_at.desc(), CalibrationRow.id.desc())
        wanted = select(CalibrationRow).where(CalibrationRow.device == device).order_by(*order).limit(1)
        with reading(self._engine) as session:
            row = session.scalars(wanted).one_or_none()
        if row is None:
            return None
        return Calibration(id=row.id, device=row.device, content=row.calibration, created_at=row.created_at)


class TracedProfileStore:
    """Files of traced profiles in a database, under the folder of their stack and their name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, stack: str, name: str, content: bytes) -> None:
        """Store a file, in place of one with this name."""
        row = TracedProfileRow(stack=stack, name=name, content=content, created_at=datetime.now(UTC))
        with writing(self._engine) as session:
            session.merge(row)

    def get(self, stack: str, name: str) -> bytes | None:
        """The content of a file, if there is one."""
        with reading(self._engine) as session:
            row = session.get(TracedProfileRow, (stack, name))
            return None if row is None else row.content

    def names(self, stack: str) -> tuple[str, ...]:
        """The files of a stack."""
        wanted = select(TracedProfileRow.name).where(TracedProfileRow.stack == stack)
        with reading(self._engine) as session:
            return tuple(session.scalars(wanted.order_by(TracedProfileRow.name)))
