"""`POST /plans`: a model and a budget in, ranked candidates and the reasons against the rest out."""

from fastapi import APIRouter

from whatfits.estimator.specs import Plan, PlanRequest
from whatfits.service.api.deps import PlannerDep
from whatfits.service.domain.questions import check_remote_model

__all__ = ["router"]

router = APIRouter(tags=["questions"])


@router.post("/plans", summary="Search what fits, best first")
def create_plan(request: PlanRequest, planner: PlannerDep) -> Plan:
    """Every optimizer, rank, micro-batch, placement and checkpointing choice, ranked; and why the rest fails."""
    check_remote_model(request.model)
    return planner.plan(request)
