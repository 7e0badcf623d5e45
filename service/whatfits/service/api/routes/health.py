"""`GET /healthz`: the process answers."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

__all__ = ["router"]

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Is the server alive")
async def read_health() -> Health:
    """Answers as long as the process does; nothing else is checked."""
    return Health()
