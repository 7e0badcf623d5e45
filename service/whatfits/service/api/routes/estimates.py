"""`POST /estimates`: one run in, its memory, time and verdict out."""

from typing import Annotated

from fastapi import APIRouter, Query

from whatfits.estimator.specs import Estimate, RunSpec
from whatfits.service.api.deps import PlannerDep
from whatfits.service.api.schemas import EstimateOptions
from whatfits.service.domain.questions import check_remote_model

__all__ = ["router"]

router = APIRouter(tags=["questions"])


@router.post("/estimates", summary="Estimate one run")
def create_estimate(
    run: RunSpec, options: Annotated[EstimateOptions, Query()], planner: PlannerDep
) -> Estimate:
    """Memory with its breakdown, time of one step, and whether it fits."""
    check_remote_model(run.model)
    return planner.estimate(run, explain=options.explain)
