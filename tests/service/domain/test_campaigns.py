"""Campaigns: all points or none, stored once however often they are sent; on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.fakes import FakePlanner
from tests.fleet.scripts import make_body
from tests.measurements import NOON, make_agent, make_result
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs import MeasurementStatus
from whatfits.service.domain.campaigns import MAX_POINTS, CampaignRequest, Campaigns
from whatfits.service.domain.measurements import Measurements, NoAgentError
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.campaigns import CampaignStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.database import open_database
from whatfits.service.storage.errors import ConflictError, NotFoundError
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore

SEED = {"seed": 7}


class ServerDiedError(Exception):
    """What a test has happen between storing a measurement and putting it into its queue."""


@dataclass(kw_only=True)
class Queue:
    """Queues that die with the server after some submissions."""

    dies_at: int | None = None
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def submit(self, measurement_id: str, queue: str) -> None:
        assert queue == "cpu/x1"
        if len(self.submitted) == self.dies_at:
            self.dies_at = None
            raise ServerDiedError
        self.submitted.append(measurement_id)

    def cancel(self, measurement_id: str) -> None:
        self.cancelled.append(measurement_id)


@dataclass(kw_only=True)
class Office:
    """The rules over a database, fake queues and a fake planner, with an agent for the CPU."""

    campaigns: Campaigns
    queue: Queue
    planner: FakePlanner

    def ids(self) -> list[str]:
        """Of the campaign's measurements, in the order of its points."""
        page = self.campaigns.measurements.list(MeasurementFilters(campaign="c"), cursor=None, limit=200)
        return [item.id for item in page.items][::-1]

    def counts(self) -> dict[str, int]:
        """Measurements by status, without zeros."""
        return {str(status): count for status, count in self.campaigns.get("c").counts.items() if count}


@pytest.fixture
def office(database_url: str) -> Iterator[Office]:
    database = open_database(database_url)
    queue, planner = Queue(), FakePlanner()
    agents = AgentStore(database)
    agents.register(make_agent())
    measurements = Measurements(
        store=MeasurementStore(database),
        claims=ClaimStore(database),
        agents=agents,
        jobs=queue,
        planner=planner,
        now=lambda: NOON,
        job_schema_version=make_agent().job_schema_version,
    )
    campaigns = Campaigns(store=CampaignStore(database), measurements=measurements)
    yield Office(campaigns=campaigns, queue=queue, planner=planner)
    database.dispose()


def make_request(*, name: str = "c", **axes: Any) -> CampaignRequest:
    """Six points; `base` changes the body that all have in common."""
    base = make_body(**{**SEED, **axes.pop("base", {})})
    matrix = {"optimizers": ["adamw", "lion", "sgd"], "micro_batch_sizes": [1, 2], **axes}
    return CampaignRequest.model_validate({"name": name, "matrix": {"base": base, **matrix}})


def test_every_combination_is_estimated_stored_and_queued(office: Office) -> None:
    state = office.campaigns.submit(make_request())

    assert (state.name, state.total, state.missing, office.counts()) == ("c", 6, 0, {"queued": 6})
    assert office.queue.submitted == office.ids()
    found = [office.campaigns.measurements.get(id_) for id_ in office.ids()]
    asked = [
        (m.request.spec.training.optimizer.name, m.request.spec.training.micro_batch_size) for m in found
    ]
    assert asked == [(name, size) for name in ("adamw", "lion", "sgd") for size in (1, 2)]
    assert all(m.estimate is not None and m.warning is None and m.request.seed == 7 for m in found)
    assert office.campaigns.list() == (state,)


def test_sent_again_after_the_server_died_it_stores_what_is_missing_and_nothing_twice(office: Office) -> None:
    office.queue.dies_at = 2
    with pytest.raises(ServerDiedError):
        office.campaigns.submit(make_request())
    first = office.ids()
    assert (len(first), office.campaigns.get("c").missing) == (3, 3)
    asked = len(office.planner.asked)

    again = office.campaigns.submit(make_request())

    assert (again.total, again.missing, office.counts()) == (6, 0, {"queued": 6})
    assert office.ids()[:3] == first
    assert len(office.planner.asked) == asked + 3
    # The one that was stored and not queued is the reaper's to queue.
    assert sorted([*office.queue.submitted, first[2]]) == sorted(office.ids())
    assert office.campaigns.submit(make_request()) == again


def test_the_name_of_another_matrix_is_refused(office: Office) -> None:
    office.campaigns.submit(make_request())

    with pytest.raises(ConflictError, match="there is a campaign 'c' with another matrix"):
        office.campaigns.submit(make_request(micro_batch_sizes=[1, 2, 4]))

    assert len(office.ids()) == 6


@pytest.mark.parametrize(
    ("axes", "field_", "kind"),
    [
        ({"models": ["galore-llama-60m", "no-such"]}, "matrix[6].spec.model", InputError),
        ({"models": ["python:os:system"]}, "matrix[0].spec.model", InputError),
        ({"base": {"num_layers": 9999}}, "matrix[0].num_layers", InputError),
        ({"precisions": ["bf16", "bf16_master"], "base": {"spec": {"model": "no"}}}, "matrix[0].spec.model", InputError),
        ({"ranks": [4]}, "matrix.ranks", InputError),
        ({"micro_batch_sizes": list(range(1, MAX_POINTS))}, "matrix", InputError),
    ],
)  # fmt: skip
def test_a_point_that_cannot_be_used_is_named_and_nothing_is_stored(
    office: Office, axes: dict[str, Any], field_: str, kind: type[InputError]
) -> None:
    if "spec" in axes.get("base", {}):
        axes["base"]["spec"] = {**make_body()["spec"], **axes["base"]["spec"]}
    with pytest.raises(kind) as error:
        office.campaigns.submit(make_request(**axes))

    assert error.value.field == field_
    assert (office.ids(), office.campaigns.list(), office.queue.submitted) == ([], (), [])


def test_the_combination_is_said_with_what_is_wrong_with_it(office: Office) -> None:
    with pytest.raises(InputError) as error:
        office.campaigns.submit(make_request(optimizers=["lion", "lomo"]))

    assert error.value.field == "matrix[2].spec.training.layerwise_update"
    assert 'with {"optimizer": {"name": "lomo"}, "micro_batch_size": 1}' in error.value.reason


def test_a_point_that_is_not_modelled_is_measured_without_an_estimate(office: Office) -> None:
    office.planner.failure = UnsupportedError("training.loss", "odd", "standard")

    office.campaigns.submit(make_request())

    warning = office.campaigns.measurements.get(office.ids()[0]).warning
    assert warning is not None
    assert warning.startswith("Not estimated: spec.training.loss")


def test_a_device_that_nobody_has_is_refused_whole_or_queued_with_a_warning(office: Office) -> None:
    office.campaigns.measurements.agents.remove(make_agent().id)

    with pytest.raises(NoAgentError, match=r"serves cpu/x1; registered: none\."):
        office.campaigns.submit(make_request())
    assert (office.ids(), office.campaigns.list()) == ([], ())

    office.campaigns.submit(make_request(), queue_when_unavailable=True)
    warnings = {office.campaigns.measurements.get(id_).warning for id_ in office.ids()}
    assert warnings == {"No agent that is there serves cpu/x1; registered: none."}


def test_what_is_left_is_cancelled_and_what_ended_stays(office: Office) -> None:
    office.campaigns.submit(make_request())
    ids = office.ids()
    store = office.campaigns.measurements.store
    store.finish(ids[0], make_result())
    store.begin(ids[1], "agent")

    office.campaigns.cancel("c")

    assert office.counts() == {"succeeded": 1, "running": 1, "cancelled": 4}
    assert store.cancel_requested(ids[1])
    assert sorted(office.queue.cancelled) == sorted(ids[2:])
    store.finish(ids[1], None)
    with pytest.raises(ConflictError, match="nothing is left of the campaign 'c'"):
        office.campaigns.cancel("c")
    assert office.campaigns.submit(make_request()).counts[MeasurementStatus.CANCELLED] == 5


def test_a_campaign_that_nobody_asked_for_is_not_found(office: Office) -> None:
    for ask in (office.campaigns.get, office.campaigns.cancel):
        with pytest.raises(NotFoundError, match="no campaign 'x'"):
            ask("x")
