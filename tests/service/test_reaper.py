"""What agents that died left is found, and ends or goes on; what is in order is left alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine as Database

from tests.measurements import make_agent, make_measurement, make_result
from whatfits.estimator.specs import MeasurementStatus
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.engine import JobState, RunningJob
from whatfits.service.reaper import Reaper
from whatfits.service.settings import Settings
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.coordination import try_alone
from whatfits.service.storage.database import open_database
from whatfits.service.storage.measurements import MeasurementStore

QUEUE = "cpu/x1"


@dataclass(kw_only=True)
class FakeQueues:
    """Where jobs stand, and what was asked of them."""

    jobs: dict[str, JobState] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def submit(self, measurement_id: str, queue: str) -> None:
        self.asked.append(f"submit {measurement_id} {queue}")

    def cancel(self, measurement_id: str) -> None:
        self.asked.append(f"cancel {measurement_id}")

    def resume(self, measurement_id: str, queue: str) -> None:
        self.asked.append(f"resume {measurement_id} {queue}")

    def states(self, measurement_ids: Iterable[str]) -> dict[str, JobState]:
        return {id_: self.jobs[id_] for id_ in measurement_ids if id_ in self.jobs}

    def running(self) -> tuple[RunningJob, ...]:
        return tuple(RunningJob(measurement_id=id_, agent=agent) for id_, agent in self.holders.items())


class World:
    """A store with one measurement, two agents of which one is silent, and queues."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = MeasurementStore(database)
        self.agents = AgentStore(database)
        self.queues = FakeQueues()
        self.reaper = Reaper(database, self.queues, Settings(database_url="sqlite:///unused.db"))
        now = datetime.now(UTC)
        self.agents.register(make_agent("live", heartbeat_at=now))
        self.agents.register(make_agent("dead", heartbeat_at=now - timedelta(minutes=1)))
        self.store.add(make_measurement("m", queue=QUEUE))

    def held_by(self, agent: str, *, attempts: int = 1) -> None:
        for _ in range(attempts):
            self.store.begin("m", agent)
        self.queues.holders["m"] = agent
        self.queues.jobs["m"] = JobState.RUNNING

    def search(self, *, times: int = 1) -> list[str]:
        for _ in range(times):
            self.reaper.search()
        return self.queues.asked


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    database = open_database(database_url)
    yield World(database)
    database.dispose()


def test_what_a_live_agent_has_is_left_alone(world: World) -> None:
    world.held_by("live")

    assert world.search(times=3) == []


def test_what_waits_is_left_alone(world: World) -> None:
    world.queues.jobs["m"] = JobState.WAITING

    assert world.search(times=3) == []


def test_what_a_silent_agent_had_goes_back_into_the_queue(world: World) -> None:
    world.held_by("dead")

    assert world.search() == [f"resume m {QUEUE}"]


def test_what_an_agent_had_that_is_not_even_registered_goes_back_into_the_queue(world: World) -> None:
    world.held_by("unheard-of")

    assert world.search() == [f"resume m {QUEUE}"]


def test_what_was_to_be_cancelled_is_cancelled(world: World) -> None:
    world.held_by("dead")
    world.store.request_cancel("m")

    assert world.search() == ["cancel m"]
    assert world.store.get("m").status == MeasurementStatus.CANCELLED


def test_what_took_three_agents_down_is_not_tried_again(world: World) -> None:
    world.held_by("dead", attempts=3)

    assert world.search() == ["cancel m"]
    found = world.store.get("m")
    assert found.failure is not None
    assert (found.status, found.failure.kind) == (MeasurementStatus.FAILED, FailureKind.AGENT_LOST)


def test_a_job_of_a_silent_agent_whose_measurement_is_final_is_taken_out(world: World) -> None:
    world.held_by("dead")
    world.store.finish("m", make_result())

    assert world.search() == ["cancel m"]
    assert world.store.get("m").status == MeasurementStatus.SUCCEEDED


def test_one_that_never_came_into_a_queue_is_put_there_by_the_second_pass(world: World) -> None:
    assert world.search() == []
    assert world.search() == [f"submit m {QUEUE}"]


def test_one_whose_job_ended_without_an_outcome_is_failed_with_that_reason(world: World) -> None:
    world.store.begin("m", "live")
    world.queues.jobs["m"] = JobState.ENDED

    world.search(times=2)

    failure = world.store.get("m").failure
    assert failure is not None
    assert failure.kind == FailureKind.NOT_STORED


def test_one_whose_job_was_cancelled_is_cancelled(world: World) -> None:
    world.queues.jobs["m"] = JobState.CANCELLED

    world.search(times=2)

    assert world.store.get("m").status == MeasurementStatus.CANCELLED


def test_of_several_servers_one_searches_at_a_time(world: World) -> None:
    world.held_by("dead")

    with try_alone(world.database) as first:
        assert first
        assert world.search() == []
    assert world.search() == [f"resume m {QUEUE}"]


def test_an_agent_that_was_silent_for_an_hour_is_forgotten(world: World) -> None:
    now = datetime.now(UTC)
    world.agents.register(make_agent("gone", heartbeat_at=now - timedelta(hours=2)))

    world.search()

    assert {state.agent.id for state in world.agents.list(now)} == {"live", "dead"}
