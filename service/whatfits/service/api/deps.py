"""What handlers ask for."""

from typing import Annotated

from fastapi import Depends, Request

from whatfits.service.backend import Backend
from whatfits.service.domain.campaigns import Campaigns
from whatfits.service.domain.measurements import Measurements
from whatfits.service.domain.planner import Planner

__all__ = ["CampaignsDep", "MeasurementsDep", "PlannerDep"]


def _planner_of(request: Request) -> Planner:
    planner: Planner = request.app.state.planner
    return planner


def _backend_of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


# Not async: it may wait for the database, and FastAPI then runs it in a thread.
def _measurements_of(request: Request) -> Measurements:
    return _backend_of(request).measurements()


def _campaigns_of(request: Request) -> Campaigns:  # not async, likewise
    return _backend_of(request).campaigns()


CampaignsDep = Annotated[Campaigns, Depends(_campaigns_of)]
MeasurementsDep = Annotated[Measurements, Depends(_measurements_of)]
PlannerDep = Annotated[Planner, Depends(_planner_of)]
