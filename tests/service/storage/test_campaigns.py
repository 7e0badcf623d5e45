"""Campaigns and what is counted of them, on SQLite and on PostgreSQL."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from tests.measurements import NOON, make_measurement
from whatfits.service.storage.campaigns import Campaign, CampaignStore, point_key
from whatfits.service.storage.errors import ConflictError, NotFoundError
from whatfits.service.storage.measurements import MeasurementStore


def test_campaigns_come_back_newest_first(engine: Engine) -> None:
    store = CampaignStore(engine)
    old = Campaign(id="c-1", request={"matrix": {"ranks": [8]}, "num_points": 1}, created_at=NOON)
    new = Campaign(id="c-2", request={}, created_at=NOON + timedelta(hours=1))
    store.add(old)
    store.add(new)
    assert store.get("c-1") == old
    assert store.list() == (new, old)
    with pytest.raises(NotFoundError, match="no campaign 'c-3'"):
        store.get("c-3")


def test_the_same_campaign_is_stored_once_and_another_of_its_name_is_refused(engine: Engine) -> None:
    store = CampaignStore(engine)
    first = Campaign(id="c", request={"matrix": {"ranks": [8]}}, created_at=NOON)
    store.add(first)
    store.add(Campaign(id="c", request=first.request, created_at=NOON + timedelta(hours=1)))
    with pytest.raises(ConflictError, match="another campaign 'c' already"):
        store.add(Campaign(id="c", request={"matrix": {"ranks": [4]}}, created_at=NOON))
    assert store.list() == (first,)


def test_only_its_points_are_counted(engine: Engine) -> None:
    campaigns, measurements = CampaignStore(engine), MeasurementStore(engine)
    for index, campaign in enumerate(("c", "c", "C", "c_")):
        measurement = make_measurement(f"m{index}").model_copy(update={"campaign": campaign})
        measurements.add(measurement, idempotency_key=point_key(campaign, index))
    single = make_measurement("single").model_copy(update={"campaign": "c"})
    measurements.add(single, idempotency_key="campaign")
    measurements.finish("m0", None)

    assert {name: dict(counts) for name, counts in campaigns.counts().items()} == {
        "c": {"queued": 1, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 1},
        "C": {"queued": 1, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
        "c_": {"queued": 1, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0},
    }
    assert list(campaigns.counts("C")) == ["C"]
    assert campaigns.counts("none") == {}
    assert campaigns.keys("c") == {point_key("c", 0), point_key("c", 1)}
    assert campaigns.left("c") == ("m1",)
