"""`/campaigns`: a matrix of runs, asked for, watched and cancelled as one."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from whatfits.service.api.deps import CampaignsDep
from whatfits.service.api.measurement_schemas import (
    CampaignEntry,
    CampaignList,
    SubmitOptions,
    describe_campaign,
)
from whatfits.service.domain.campaigns import MAX_POINTS, CampaignRequest

__all__ = ["router"]

router = APIRouter(tags=["measurements"])
# The kind of FastAPI's parameter.
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such campaign"}}


@router.post(
    "/campaigns",
    status_code=202,
    summary="Measure a matrix of runs",
    description=f"""Every combination of the axes, at most {MAX_POINTS}, becomes a measurement of this campaign. All are checked and estimated before any is
stored, and the answer comes when all are. The same name with the same matrix is the same campaign, however often it is sent: only what is missing is stored.""",
    responses={
        202: {"headers": {"Location": {"schema": {"type": "string"}}}},
        409: {"description": "No agent has a device of it, or the name is that of another matrix"},
    },
)
def create_campaign(
    campaign: CampaignRequest,
    options: Annotated[SubmitOptions, Query()],
    campaigns: CampaignsDep,
    request: Request,
    response: Response,
) -> CampaignEntry:
    """Store it, and put its measurements into the queues of their kinds of device."""
    state = campaigns.submit(campaign, queue_when_unavailable=options.when_unavailable == "queue")
    response.headers["Location"] = request.url_for("read_campaign", name=state.name).path
    return describe_campaign(state)


@router.get("/campaigns", summary="Campaigns, newest first")
def list_campaigns(campaigns: CampaignsDep) -> CampaignList:
    """Each with its measurements by status; `GET /measurements?campaign=` lists them."""
    return CampaignList(items=tuple(describe_campaign(state) for state in campaigns.list()))


@router.get("/campaigns/{name}", summary="One campaign", responses=_UNKNOWN)
def read_campaign(name: str, campaigns: CampaignsDep) -> CampaignEntry:
    """How far it is."""
    return describe_campaign(campaigns.get(name))


@router.delete(
    "/campaigns/{name}",
    status_code=202,
    summary="Cancel what is left of a campaign",
    responses={**_UNKNOWN, 409: {"description": "All its measurements have ended"}},
)
def cancel_campaign(name: str, campaigns: CampaignsDep) -> CampaignEntry:
    """Ends at once what waits; where one runs, its processes are ended within two seconds."""
    return describe_campaign(campaigns.cancel(name))
