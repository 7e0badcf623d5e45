"""Small valid measurements; every change goes through validation."""

from datetime import UTC, datetime
from typing import Any

from whatfits.estimator.specs import (
    MeasuredEnvironment,
    Measurement,
    MeasurementFailure,
    MeasurementResult,
    StepTimes,
)
from whatfits.estimator.specs.measurement import FailureKind, MeasurementOutcome
from whatfits.service.domain.agents import Agent

__all__ = ["NOON", "make_agent", "make_environment", "make_failure", "make_measurement", "make_result"]

NOON = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)


def make_environment(**changes: Any) -> MeasuredEnvironment:
    """A CPU."""
    content = {"device_name": "a CPU", "packages": {"torch": "2.13"}, "python": "3.11", "platform": "Linux"}
    return MeasuredEnvironment.model_validate({**content, **changes})


def make_result(**changes: Any) -> MeasurementResult:
    """Two steps on a CPU."""
    content = {
        "outcome": MeasurementOutcome.COMPLETED,
        "reached_step": 2,
        "reached_phase": None,
        "num_layers": 2,
        "num_parameters": 1000,
        "peaks": (),
        "peak_requested_bytes": 2**40 + 1,
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "times": StepTimes(
            forward=(0.1, 0.3), loss=(), backward=(0.2, 0.2), optimizer_step=(0.1, 1e-9), step=(0.4, 0.5)
        ),
        "tokens_per_second": 1 / 3,
        "mfu": None,
        "environment": make_environment(),
    }
    return MeasurementResult.model_validate({**content, **changes})


def make_failure(**changes: Any) -> MeasurementFailure:
    """The process went away; its last words hold what PostgreSQL's text cannot."""
    return MeasurementFailure.model_validate(
        {"kind": FailureKind.DIED, "message": "killed \0 by \ud800 signal 9", **changes}
    )


def make_measurement(id: str = "m-1", **changes: Any) -> Measurement:  # noqa: A002
    """A queued one; `model`, `optimizer` and `seed` go where they belong."""
    spec = {
        "model": changes.pop("model", "llama-7b"),
        "training": {"optimizer": {"name": changes.pop("optimizer", "adamw")}},
        "hardware": {"gpu": "h100-80gb-sxm"},
    }
    content = {
        "id": id,
        "status": "queued",
        "queue": "cpu/x1",
        "request": {"spec": spec, "device": "cpu", "seed": changes.pop("seed", 0)},
        "created_at": NOON,
    }
    return Measurement.model_validate({**content, **changes})


def make_agent(id: str = "agent-1", **changes: Any) -> Agent:  # noqa: A002
    """One on a CPU, heard at noon."""
    content = {
        "id": id,
        "queue": "cpu/x1",
        "host": "box",
        "slot": "cpu0",
        "device_name": "a CPU",
        "versions": {"torch": "2.13"},
        "job_schema_version": "1",
        "started_at": NOON,
        "heartbeat_at": NOON,
    }
    return Agent.model_validate({**content, **changes})
