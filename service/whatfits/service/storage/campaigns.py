"""Campaigns: what was asked as one. Their measurements are known by idempotency keys that no client can send."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, func, select

from whatfits.estimator.specs import MeasurementStatus
from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.errors import ConflictError, NotFoundError
from whatfits.service.storage.measurements import FINAL_STATUSES
from whatfits.service.storage.rows import insert_new
from whatfits.service.storage.tables import CampaignRow, IdempotencyKeyRow, MeasurementRow

__all__ = ["Campaign", "CampaignStore", "Counts", "point_key"]

Counts = Mapping[MeasurementStatus, int]
"""Measurements by status; none is left out."""

_PREFIX = "campaign "
"""The keys that clients send hold no space."""


def point_key(name: str, index: int) -> str:
    """The idempotency key of one point of a campaign."""
    return f"{_PREFIX}{name} {index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A matrix of measurements that was asked as one; they name it by its id."""

    id: str
    request: dict[str, Any]  # Any: the JSON of what was asked
    created_at: datetime


class CampaignStore:
    """Campaigns in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, campaign: Campaign) -> None:
        """Store a campaign; does nothing where the same was stored before.

        Raises:
            ConflictError: Its id is taken by another.
        """
        values = {"id": campaign.id, "request": campaign.request, "created_at": campaign.created_at}
        with writing(self._engine) as session:
            if insert_new(session, CampaignRow, values):
                return
            stored = session.get_one(CampaignRow, campaign.id)
            if stored.request != campaign.request:
                raise ConflictError(f"there is another campaign {campaign.id!r} already")

    def get(self, id: str) -> Campaign:  # noqa: A002 - the name that all records use
        """The campaign with this id.

        Raises:
            NotFoundError: There is none.
        """
        with reading(self._engine) as session:
            row = session.get(CampaignRow, id)
            if row is None:
                raise NotFoundError("campaign", id)
            return Campaign(id=row.id, request=row.request, created_at=row.created_at)

    def list(self) -> tuple[Campaign, ...]:
        """All campaigns, newest first."""
        order = (CampaignRow.created_at.desc(), CampaignRow.id.desc())
        with reading(self._engine) as session:
            rows = session.scalars(select(CampaignRow).order_by(*order)).all()
        return tuple(Campaign(id=row.id, request=row.request, created_at=row.created_at) for row in rows)

    def counts(self, id: str | None = None) -> dict[str, Counts]:  # noqa: A002
        """Measurements by status, of one campaign or of each that has any."""
        row = MeasurementRow
        counted = (
            select(row.campaign, row.status, func.count())
            .join(IdempotencyKeyRow, _is_point(id))
            .group_by(row.campaign, row.status)
        )
        found: dict[str, dict[MeasurementStatus, int]] = defaultdict(
            lambda: dict.fromkeys(MeasurementStatus, 0)
        )
        with reading(self._engine) as session:
            for name, status, count in session.execute(counted):
                found[str(name)][MeasurementStatus(status)] = count
        return dict(found)

    def keys(self, id: str) -> frozenset[str]:  # noqa: A002
        """Keys of the points that were stored."""
        wanted = select(IdempotencyKeyRow.key).join(MeasurementRow, _is_point(id))
        with reading(self._engine) as session:
            return frozenset(session.scalars(wanted))

    def left(self, id: str) -> tuple[str, ...]:  # noqa: A002
        """Measurements that are not final, those asked last first, so that none is begun while others are cancelled."""
        row = MeasurementRow
        wanted = (
            select(row.id).join(IdempotencyKeyRow, _is_point(id)).where(row.status.not_in(FINAL_STATUSES))
        )
        with reading(self._engine) as session:
            return tuple(session.scalars(wanted.order_by(row.created_at.desc(), row.id.desc())))


def _is_point(id_: str | None) -> ColumnElement[bool]:
    """What joins the measurements of campaigns, or of one, with their keys."""
    of_campaigns = and_(
        IdempotencyKeyRow.measurement_id == MeasurementRow.id,
        IdempotencyKeyRow.key.startswith(_PREFIX, autoescape=True),
    )
    return of_campaigns if id_ is None else and_(of_campaigns, MeasurementRow.campaign == id_)
