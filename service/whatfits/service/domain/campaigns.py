"""Campaigns: a matrix of runs as one durable run.

Every point is checked before any is stored. Then the campaign is stored, and its points one by one, each under a key made of
the campaign's name and the point's index: what a server that died had not stored is stored when the same is sent again.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError

from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import Measurement, MeasurementStatus, input_errors
from whatfits.estimator.specs.base import Spec
from whatfits.estimator.specs.campaign import CampaignMatrix, with_changes
from whatfits.service.domain.measurements import Jobs, Measurements, Submission, cancel, naming, with_warning
from whatfits.service.storage.campaigns import Campaign, CampaignStore, Counts, point_key
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.errors import ConflictError, NotFoundError
from whatfits.service.storage.measurements import MeasurementStore

__all__ = [
    "MAX_POINTS",
    "CampaignRequest",
    "CampaignState",
    "Campaigns",
    "cancel_left",
    "list_campaigns",
    "read_campaign",
]

MAX_POINTS = 500
"""Measurements of one campaign: each is estimated before the first is stored, while the client waits."""
_SHOWN_LENGTH = 200

CampaignName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]


class CampaignRequest(Spec):
    """A matrix of runs to measure, under a name."""

    name: CampaignName
    """Of the campaign; its measurements are listed by it."""
    matrix: CampaignMatrix
    """The runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignState:
    """A campaign and how far it is."""

    name: str
    created_at: datetime
    total: int
    counts: Counts

    @property
    def missing(self) -> int:
        """Points that were never stored, as the server died before; sending the campaign again stores them."""
        return self.total - sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaigns:
    """The rules for campaigns, over those for measurements."""

    store: CampaignStore
    measurements: Measurements

    def submit(self, request: CampaignRequest, *, queue_when_unavailable: bool = False) -> CampaignState:
        """Store a campaign and put its measurements into their queues; sent again, only those that are missing.

        Args:
            request: Its name and its matrix.
            queue_when_unavailable: Take points although no agent could carry them out, with a warning.

        Raises:
            InputError: A point cannot be used, or there are too many; nothing was stored.
            NoAgentError: Nobody could carry out a point; nothing was stored.
            ConflictError: The name is that of a campaign with another matrix.
        """
        _check_size(request.matrix)
        campaign = _campaign_of(request)
        self._refuse_another(campaign)
        drafts = self._draft_missing(request, queue_when_unavailable=queue_when_unavailable)
        self.store.add(campaign)
        for index, draft in drafts.items():
            self.measurements.keep(draft, idempotency_key=point_key(request.name, index))
        return self.get(request.name)

    def get(self, name: str) -> CampaignState:
        """One campaign.

        Raises:
            NotFoundError: There is none of this name.
        """
        return read_campaign(name, self.store)

    def list(self) -> tuple[CampaignState, ...]:
        """All campaigns, newest first."""
        return list_campaigns(self.store)

    def cancel(self, name: str) -> CampaignState:
        """Stop what is left of a campaign.

        Raises:
            NotFoundError: There is none of this name.
            ConflictError: Nothing is left of it.
        """
        rules = self.measurements
        return cancel_left(name, self.store, store=rules.store, claims=rules.claims, jobs=rules.jobs)

    def _refuse_another(self, campaign: Campaign) -> None:
        """Say so before every point is estimated."""
        with suppress(NotFoundError):
            if self.store.get(campaign.id).request != campaign.request:
                raise ConflictError(f"there is a campaign {campaign.id!r} with another matrix")

    def _draft_missing(
        self, request: CampaignRequest, *, queue_when_unavailable: bool
    ) -> dict[int, Measurement]:
        """The points that are not stored yet, by index."""
        known = self.store.keys(request.name)
        drafts = {
            index: self._draft(request, index, changes)
            for index, changes in enumerate(request.matrix.points())
            if point_key(request.name, index) not in known
        }
        absences = {
            queue: self.measurements.find_absence(queue, refuse=not queue_when_unavailable)
            for queue in sorted({draft.queue for draft in drafts.values()})
        }
        return {index: with_warning(draft, absences[draft.queue]) for index, draft in drafts.items()}

    # Any: values of unlike fields.
    def _draft(self, request: CampaignRequest, index: int, changes: dict[str, Any]) -> Measurement:
        with naming(f"matrix[{index}]", where=_word(changes)):
            try:
                run = with_changes(request.matrix.base, **changes)
            except ValidationError as error:
                with naming("spec"):
                    raise input_errors(error)[0] from error
            fields = {field: getattr(run, field) for field in type(run).model_fields}
            return self.measurements.draft(Submission(**fields, campaign=request.name))


def read_campaign(name: str, campaigns: CampaignStore) -> CampaignState:
    """One campaign.

    Raises:
        NotFoundError: There is none of this name.
    """
    campaign = campaigns.get(name)
    return _state_of(campaign, campaigns.counts(name).get(name))


def list_campaigns(campaigns: CampaignStore) -> tuple[CampaignState, ...]:
    """All campaigns, newest first."""
    counts = campaigns.counts()
    return tuple(_state_of(campaign, counts.get(campaign.id)) for campaign in campaigns.list())


def cancel_left(
    name: str, campaigns: CampaignStore, *, store: MeasurementStore, claims: ClaimStore, jobs: Jobs
) -> CampaignState:
    """Stop the measurements of a campaign that have not ended, or ask their agents to.

    Raises:
        NotFoundError: There is none of this name.
        ConflictError: Nothing is left of it.
    """
    campaigns.get(name)
    left = campaigns.left(name)
    if not left:
        raise ConflictError(f"nothing is left of the campaign {name!r}: all its measurements have ended")
    for measurement_id in left:
        with suppress(ConflictError):  # it ended meanwhile
            cancel(measurement_id, store=store, claims=claims, jobs=jobs)
    return read_campaign(name, campaigns)


def _state_of(campaign: Campaign, counts: Counts | None) -> CampaignState:
    return CampaignState(
        name=campaign.id,
        created_at=campaign.created_at,
        total=campaign.request["num_points"],
        counts=dict.fromkeys(MeasurementStatus, 0) if counts is None else counts,
    )


def _word(changes: dict[str, Any]) -> str:  # Any: values of unlike fields
    """A combination for a person; a config, which may be long, is cut."""
    said = json.dumps(changes, ensure_ascii=False)
    return f"with {said[:_SHOWN_LENGTH]}"


def _campaign_of(request: CampaignRequest) -> Campaign:
    matrix = request.matrix
    # What was left out stays out, so that the same text is the same campaign when a later version has more fields.
    sent = matrix.model_dump(mode="json", exclude_unset=True)
    content = {"matrix": sent, "num_points": matrix.num_points}
    return Campaign(id=request.name, request=content, created_at=datetime.now(UTC))


def _check_size(matrix: CampaignMatrix) -> None:
    if matrix.num_points > MAX_POINTS:
        raise InputError(
            "matrix",
            matrix.num_points,
            f"at most {MAX_POINTS} combinations",
            reason=f"it has {matrix.num_points} combinations",
        )
    if matrix.ranks and not matrix.varies_ranks:
        raise InputError(
            "matrix.ranks",
            matrix.ranks,
            "ranks beside an optimizer that has a choice of them",
            reason="no optimizer of the matrix has a choice of ranks",
        )
