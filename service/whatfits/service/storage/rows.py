"""A measurement as rows and back: its spec and its environment are stored once each, under the hash of their content."""

import hashlib
import json
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Select, exists, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from whatfits.estimator.specs import Measurement, MeasurementResult, RunSpec
from whatfits.service.storage.errors import NotFoundError, StoredDataError
from whatfits.service.storage.tables import Base, EnvironmentRow, Json, MeasurementRow, SpecRow

__all__ = [
    "content_hash",
    "insert_new",
    "load_measurement",
    "measurement_of",
    "model_label",
    "require_measurement",
    "result_columns",
    "select_measurements",
    "store_measurement",
]


def content_hash(content: Json) -> str:
    """SHA-256 of JSON in its canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def model_label(spec: RunSpec) -> str:
    """What a run's model is filtered by: its name, a config's own name, or else its type."""
    if isinstance(spec.model, str):
        return spec.model
    named = (spec.model.get(key) for key in ("_name_or_path", "model_type"))
    return next((name for name in named if isinstance(name, str) and name), "config")


# Any: the values of columns.
def insert_new(session: Session, table: type[Base], values: dict[str, Any]) -> bool:
    """Insert a row unless one with its primary key is there; whether it was inserted.

    Where another transaction is inserting the same key, this one waits for its end.
    """
    key = table.__mapper__.primary_key[0]
    if session.get_bind().dialect.name == "postgresql":
        of_postgresql = postgresql.insert(table).values(values).on_conflict_do_nothing().returning(key)
        return session.execute(of_postgresql).first() is not None
    of_sqlite = sqlite.insert(table).values(values).on_conflict_do_nothing().returning(key)
    return session.execute(of_sqlite).first() is not None


def store_measurement(session: Session, measurement: Measurement) -> bool:
    """Insert a measurement as it is; whether its id was new."""
    content = measurement.model_dump(mode="json", exclude={"request": {"spec"}, "result": True})
    spec = measurement.request.spec
    spec_content = spec.model_dump(mode="json")
    spec_hash = content_hash(spec_content)
    insert_new(session, SpecRow, {"hash": spec_hash, "spec": spec_content})
    values = {
        **content,
        **result_columns(session, measurement.result),
        "model": model_label(spec),
        "optimizer": str(spec.training.optimizer.name),
        "spec_hash": spec_hash,
        "created_at": measurement.created_at,
        "started_at": measurement.started_at,
        "finished_at": measurement.finished_at,
        "cancel_requested": False,
        "progress_count": 0,
    }
    return insert_new(session, MeasurementRow, values)


def result_columns(session: Session, result: MeasurementResult | None) -> dict[str, Any]:
    """The columns that a result fills, its environment stored."""
    if result is None:
        return {"result": None, "environment_hash": None, "device_name": None}
    environment = result.environment.model_dump(mode="json")
    environment_hash = content_hash(environment)
    insert_new(session, EnvironmentRow, {"hash": environment_hash, "environment": environment})
    return {
        "result": result.model_dump(mode="json", exclude={"environment"}),
        "environment_hash": environment_hash,
        "device_name": result.environment.device_name,
    }


def measurement_of(row: MeasurementRow, spec: Json, environment: Json | None) -> Measurement:
    """The measurement that was stored.

    Raises:
        StoredDataError: A newer version wrote what this one does not know.
    """
    same = set(Measurement.model_fields) - {"request", "result"}
    result = None if row.result is None else {**row.result, "environment": environment}
    content = {name: getattr(row, name) for name in same}
    content |= {"request": {**row.request, "spec": spec}, "result": result}
    try:
        return Measurement.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise StoredDataError(
            f"measurement {row.id!r} cannot be read by this version ({place}: {fault['msg']})"
        ) from error


def select_measurements() -> Select[MeasurementRow, Json, Json]:
    """Measurements with their specs and environments."""
    return (
        select(MeasurementRow, SpecRow.spec, EnvironmentRow.environment)
        .join(SpecRow, SpecRow.hash == MeasurementRow.spec_hash)
        .outerjoin(EnvironmentRow, EnvironmentRow.hash == MeasurementRow.environment_hash)
    )


def load_measurement(session: Session, id_: str) -> Measurement:
    """The measurement with this id.

    Raises:
        NotFoundError: There is none.
    """
    found = session.execute(select_measurements().where(MeasurementRow.id == id_)).one_or_none()
    if found is None:
        raise NotFoundError("measurement", id_)
    row, spec, environment = found
    return measurement_of(row, spec, environment)


def require_measurement(session: Session, id_: str) -> None:
    """Pass where there is a measurement with this id.

    Raises:
        NotFoundError: There is none.
    """
    if not session.execute(select(exists().where(MeasurementRow.id == id_))).scalar_one():
        raise NotFoundError("measurement", id_)
