"""Shapes of the API around measurements: what is shown with one, lists of them, and query parameters."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from whatfits.estimator.specs import Measurement, MeasurementStatus
from whatfits.estimator.specs.base import Spec
from whatfits.service.domain.agents import Agent, AgentState
from whatfits.service.domain.campaigns import CampaignState
from whatfits.service.domain.comparison import Comparison, compare
from whatfits.service.storage.measurements import MeasurementFilters
from whatfits.service.storage.paging import DEFAULT_LIMIT, MAX_LIMIT

__all__ = [
    "AgentEntry",
    "AgentList",
    "CampaignEntry",
    "CampaignList",
    "ListOptions",
    "MeasurementEntry",
    "MeasurementList",
    "StatusEvent",
    "SubmitOptions",
    "describe_agent",
    "describe_campaign",
    "describe_measurement",
]

_Text = Annotated[str, Field(min_length=1, max_length=200)]


class SubmitOptions(BaseModel):
    """What is said about a submission besides the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when_unavailable: Annotated[
        Literal["refuse", "queue"],
        Field(
            description="What to do where no registered agent has such a device: refuse it (409), or queue it with a warning."
        ),
    ] = "refuse"


class ListOptions(BaseModel):
    """Which measurements are listed, and which page of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: MeasurementStatus | None = None
    queue: _Text | None = None
    model: _Text | None = None
    optimizer: _Text | None = None
    device_name: _Text | None = None
    campaign: _Text | None = None
    source: _Text | None = None
    agent: _Text | None = None
    cursor: Annotated[_Text | None, Field(description="`next_cursor` of the page before.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT

    def filters(self) -> MeasurementFilters:
        """What the listed measurements have in common."""
        return MeasurementFilters(**self.model_dump(exclude={"cursor", "limit"}))


class MeasurementEntry(Measurement):
    """A measurement, and how far it is from its estimate."""

    comparison: Comparison | None
    """Measured beside estimated; null without a result or without an estimate."""


class MeasurementList(Spec):
    """A page of measurements, newest first."""

    items: tuple[MeasurementEntry, ...]
    next_cursor: str | None
    """Where the next page begins; null on the last one."""


class StatusEvent(Spec):
    """What a `status` event of a stream tells."""

    status: MeasurementStatus
    agent: str | None
    attempts: int


class AgentEntry(Agent):
    """An agent, and whether it was heard lately."""

    live: bool


class AgentList(Spec):
    """Every agent that was heard in the last hour."""

    items: tuple[AgentEntry, ...]


class CampaignEntry(Spec):
    """A campaign and how far it is."""

    name: str
    created_at: AwareDatetime
    total: int
    """Points of its matrix."""
    counts: dict[MeasurementStatus, int]
    """Its measurements by status."""
    missing: int
    """Points that were never stored, as the server died before; sending the campaign again stores them."""


class CampaignList(Spec):
    """Every campaign, newest first."""

    items: tuple[CampaignEntry, ...]


def describe_measurement(measurement: Measurement) -> MeasurementEntry:
    """A measurement with its comparison."""
    fields = {name: getattr(measurement, name) for name in Measurement.model_fields}
    return MeasurementEntry(**fields, comparison=compare(measurement))


def describe_agent(state: AgentState) -> AgentEntry:
    """An agent as it is listed."""
    fields = {name: getattr(state.agent, name) for name in Agent.model_fields}
    return AgentEntry(**fields, live=state.live)


def describe_campaign(state: CampaignState) -> CampaignEntry:
    """A campaign as it is shown."""
    return CampaignEntry(
        name=state.name,
        created_at=state.created_at,
        total=state.total,
        counts=dict(state.counts),
        missing=state.missing,
    )
