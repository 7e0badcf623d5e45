"""`GET /agents`: who measures, on what."""

from fastapi import APIRouter

from whatfits.service.api.deps import MeasurementsDep
from whatfits.service.api.measurement_schemas import AgentList, describe_agent

__all__ = ["router"]

router = APIRouter(tags=["measurements"])


@router.get("/agents", summary="Agents, their devices and when they were last heard")
def list_agents(measurements: MeasurementsDep) -> AgentList:
    """Every agent that was heard in the last hour; one that is not `live` was not heard lately."""
    return AgentList(items=tuple(describe_agent(state) for state in measurements.list_agents()))
