"""What handlers ask for."""

from typing import Annotated

from fastapi import Depends, Request

from whatfits.service.domain.planner import Planner

__all__ = ["PlannerDep"]


def _planner_of(request: Request) -> Planner:
    planner: Planner = request.app.state.planner
    return planner


PlannerDep = Annotated[Planner, Depends(_planner_of)]
