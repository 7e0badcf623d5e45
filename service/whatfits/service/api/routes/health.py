"""`GET /healthz`: the process answers; `GET /readyz`: so does what it needs."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from whatfits.service.api.deps import MeasurementsDep

__all__ = ["router"]

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """The database answers, with the tables of this version."""

    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    live_agents: dict[str, int]
    """Agents that were heard lately, by queue. A server without any is ready: it answers questions."""


@router.get("/healthz", summary="Is the server alive")
def read_health() -> Health:
    """Answers as long as the process does; nothing else is checked."""
    return Health()


@router.get(
    "/readyz", summary="Is the server ready", responses={503: {"description": "The database does not answer"}}
)
def read_readiness(measurements: MeasurementsDep) -> Readiness:
    """Whether the database answers, and how many agents are there."""
    return Readiness(live_agents=measurements.count_live_agents())
