"""Measurements as JSON lines, one a line: what one store gives to another.

Only what is final is exchanged: what still waits or runs is for the agents of its own store.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy import Engine

from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import Measurement, MeasurementStatus, input_errors
from whatfits.service.json_object import parse_object
from whatfits.service.storage.database import writing
from whatfits.service.storage.measurements import FINAL_STATUSES, MeasurementFilters, MeasurementStore
from whatfits.service.storage.paging import MAX_LIMIT
from whatfits.service.storage.rows import store_measurement

__all__ = ["Imported", "export_lines", "import_measurements", "read_lines"]

_LOCAL = "local"
"""Source of what this store's own agents measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did: ids that were new, and those that were there and stay as they are."""

    new: int
    known: int


def export_lines(store: MeasurementStore, filters: MeasurementFilters | None = None) -> Iterator[str]:
    """The final measurements that the filters leave, newest first."""
    cursor: str | None = None
    while True:
        page = store.list(filters, cursor=cursor, limit=MAX_LIMIT)
        for measurement in page.items:
            if measurement.status in FINAL_STATUSES:
                yield measurement.model_dump_json() + "\n"
        cursor = page.next_cursor
        if cursor is None:
            return


def read_lines(lines: Iterable[str], *, source: str) -> tuple[Measurement, ...]:
    """The measurements that lines hold; empty lines are passed over.

    Args:
        lines: Text of a file.
        source: What replaces the source `local`, which was that of another store.

    Raises:
        InputError: A line holds no final measurement; names line and field.
    """
    return tuple(
        _measurement(line, number, source) for number, line in enumerate(lines, start=1) if line.strip()
    )


def import_measurements(engine: Engine, measurements: Iterable[Measurement]) -> Imported:
    """Store all measurements whose ids are not known, or none of them where one cannot be stored."""
    with writing(engine) as session:
        stored = [store_measurement(session, measurement) for measurement in measurements]
    return Imported(new=sum(stored), known=len(stored) - sum(stored))


def _measurement(line: str, number: int, source: str) -> Measurement:
    try:
        measurement = Measurement.model_validate(parse_object(line))
    except ValidationError as error:
        fault = input_errors(error)[0]
        raise fault.at(f"line {number}: {fault.field}") from error
    except ValueError as error:
        raise InputError(f"line {number}", line[:80], "one measurement as JSON", reason=str(error)) from error
    _require_final(measurement, number)
    return measurement.model_copy(update={"source": source}) if measurement.source == _LOCAL else measurement


def _require_final(measurement: Measurement, number: int) -> None:
    """A final status and what belongs to it."""
    if measurement.status not in FINAL_STATUSES:
        raise InputError(f"line {number}: status", str(measurement.status), ", ".join(FINAL_STATUSES))
    for field, status in (("result", MeasurementStatus.SUCCEEDED), ("failure", MeasurementStatus.FAILED)):
        if (getattr(measurement, field) is not None) != (measurement.status is status):
            given = "missing" if measurement.status is status else "given"
            reason = f"it is {given}, but the status is {measurement.status}"
            accepted = f"a {field} where, and only where, the status is {status}"
            raise InputError(f"line {number}: {field}", given, accepted, reason=reason)
