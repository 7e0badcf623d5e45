"""The tables. What is filtered or ordered by is a column of its own; the rest of a spec is kept as the JSON it travels as."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from whatfits.service.storage.columns import PlainText, UtcDateTime

__all__ = [
    "AgentRow",
    "Base",
    "CalibrationRow",
    "CampaignRow",
    "EnvironmentRow",
    "IdempotencyKeyRow",
    "MeasurementRow",
    "ProgressRow",
    "ShippedFileRow",
    "SpecRow",
    "TracedProfileRow",
]

Json = dict[str, Any]
"""Content of a JSON column: a spec's fields, checked when it is read."""


class Base(DeclarativeBase):
    """Constraints have names, so that migrations can change them on SQLite as well."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # JSON and not JSONB: it keeps any string that a model's config may hold.
    type_annotation_map = {  # noqa: RUF012 - read by sqlalchemy when the classes are made
        Json: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        str: PlainText(),
        datetime: UtcDateTime(),
        bytes: LargeBinary(),
    }


class SpecRow(Base):
    """A run that was asked about, once."""

    __tablename__ = "specs"
    hash: Mapped[str] = mapped_column(primary_key=True)
    spec: Mapped[Json]


class EnvironmentRow(Base):
    """Device and libraries of measurements, once."""

    __tablename__ = "environments"
    hash: Mapped[str] = mapped_column(primary_key=True)
    environment: Mapped[Json]


class CampaignRow(Base):
    """A matrix of measurements that was asked as one."""

    __tablename__ = "campaigns"
    id: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[Json]
    created_at: Mapped[datetime]


class MeasurementRow(Base):
    """A measurement: `request` without its spec, `result` without its environment."""

    __tablename__ = "measurements"
    id: Mapped[str] = mapped_column(primary_key=True)
    campaign: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(index=True)
    queue: Mapped[str] = mapped_column(index=True)
    model: Mapped[str] = mapped_column(index=True)
    optimizer: Mapped[str] = mapped_column(index=True)
    device_name: Mapped[str | None] = mapped_column(index=True)
    source: Mapped[str] = mapped_column(index=True)
    spec_hash: Mapped[str] = mapped_column(ForeignKey("specs.hash"), index=True)
    environment_hash: Mapped[str | None] = mapped_column(ForeignKey("environments.hash"), index=True)
    request: Mapped[Json]
    estimate: Mapped[Json | None]
    result: Mapped[Json | None]
    failure: Mapped[Json | None]
    warning: Mapped[str | None]
    agent: Mapped[str | None] = mapped_column(index=True)
    attempts: Mapped[int]
    cancel_requested: Mapped[bool]
    progress_count: Mapped[int]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index(None, "created_at", "id"),)


class ProgressRow(Base):
    """One report of a running measurement."""

    __tablename__ = "progress"
    measurement_id: Mapped[str] = mapped_column(
        ForeignKey("measurements.id", ondelete="CASCADE"), primary_key=True
    )
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    progress: Mapped[Json]


class IdempotencyKeyRow(Base):
    """A key that a client sent, and what it sent with it first."""

    __tablename__ = "idempotency_keys"
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    measurement_id: Mapped[str] = mapped_column(ForeignKey("measurements.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]


class AgentRow(Base):
    """A process that measures on a device."""

    __tablename__ = "agents"
    id: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str] = mapped_column(index=True)
    host: Mapped[str]
    slot: Mapped[str]
    gpu_uuids: Mapped[list[str]]
    device_name: Mapped[str]
    versions: Mapped[Json]
    job_schema_version: Mapped[str]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime] = mapped_column(index=True)


class CalibrationRow(Base):
    """Constants fitted to measurements of a kind of device."""

    __tablename__ = "calibrations"
    id: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(index=True)
    calibration: Mapped[Json]
    created_at: Mapped[datetime]


class TracedProfileRow(Base):
    """A file of a memory profile that was traced on demand."""

    __tablename__ = "traced_profiles"
    stack: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes]
    created_at: Mapped[datetime]


class ShippedFileRow(Base):
    """A file of measurements that came with the package and was loaded."""

    __tablename__ = "shipped_files"
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    loaded_at: Mapped[datetime]
