"""Agents as processes: killed in the middle, told to end, and refusing what is not theirs."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.databases import copy_sqlite
from tests.fleet.processes import QUICK, Fleet, Member, eventually, open_fleet
from tests.fleet.scripts import Script, make_body, run_scripted
from tests.measurements import make_measurement
from whatfits.estimator.specs import MeasureRequest
from whatfits.service.agent import AgentProcess
from whatfits.service.engine import Engine
from whatfits.service.reaper import Reaper
from whatfits.service.settings import Settings
from whatfits.service.slots import find_slot
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.coordination import database_now
from whatfits.service.storage.database import open_database
from whatfits.service.storage.errors import UnmigratedError
from whatfits.service.storage.measurements import MeasurementStore


class World:
    """A database with its queues, a reaper that searches when told, and agents as processes."""

    def __init__(self, url: str, fleet: Fleet) -> None:
        self.fleet = fleet
        self.database = open_database(url)
        self.engine = Engine(url)
        self.store = MeasurementStore(self.database)
        self.claims = ClaimStore(self.database)
        self.agents = AgentStore(self.database)
        settings = Settings.model_validate({"database_url": url, **QUICK})
        self.reaper = Reaper(self.database, self.engine, settings)

    def submit(self, script: Script) -> tuple[str, int]:
        """Id and seed of a measurement that waits."""
        request = MeasureRequest.model_validate(make_body(script))
        measurement = make_measurement(f"m{request.seed}").model_copy(update={"request": request})
        self.store.add(measurement)
        self.engine.submit(measurement.id, measurement.queue)
        return measurement.id, request.seed

    def search(self) -> bool:
        """Let the reaper look once."""
        self.reaper.search()
        return True

    def freeze(self, member: Member) -> None:
        """Freeze a member between its writes: on SQLite, where one writes at a time, nobody could go on otherwise."""
        member.freeze()
        while self._is_locked():
            member.thaw()
            time.sleep(0.02)
            member.freeze()

    def _is_locked(self) -> bool:
        path = self.database.url.database
        if self.database.dialect.name != "sqlite" or path is None:
            return False
        with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
            return False

    def close(self) -> None:
        self.engine.close()
        self.database.dispose()


@pytest.fixture
def world(ready_url: str, tmp_path: Path) -> Iterator[World]:
    with open_fleet(ready_url, tmp_path) as fleet:
        world = World(ready_url, fleet)
        yield world
        world.close()


def _is_begun_again(world: World, seed: int, begun: int) -> bool:
    return world.search() and len(world.fleet.runs_of(seed)) > begun


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_what_a_killed_agent_had_is_carried_out_by_another_and_ends_once(world: World) -> None:
    first = world.fleet.start_agent()
    id_, seed = world.submit(Script.TWO_SECONDS)
    (child,) = eventually(lambda: world.fleet.runs_of(seed))

    first.kill()
    world.fleet.start_agent()
    eventually(lambda: world.search() and world.claims.read(id_).is_final)

    found = world.store.get(id_)
    assert (found.status, found.attempts, len(world.fleet.runs_of(seed))) == ("succeeded", 2, 2)
    assert not is_alive(child)


def test_an_agent_that_is_told_to_end_ends_its_child_and_gives_the_measurement_back(world: World) -> None:
    agent = world.fleet.start_agent()
    id_, seed = world.submit(Script.HANG)
    (child,) = eventually(lambda: world.fleet.runs_of(seed))

    assert agent.end() == 0

    claim = world.claims.read(id_)
    assert (claim.status, claim.attempts, is_alive(child)) == ("queued", 0, False)
    assert world.agents.list(database_now(world.database)) == ()
    world.fleet.start_agent()
    eventually(lambda: len(world.fleet.runs_of(seed)) == 2)


def test_a_frozen_agent_that_comes_back_ends_its_child_and_goes_on(world: World) -> None:
    first = world.fleet.start_agent()
    id_, seed = world.submit(Script.HANG)
    (child,) = eventually(lambda: world.fleet.runs_of(seed))

    world.freeze(first)
    second = world.fleet.start_agent()
    eventually(lambda: world.search() and len(world.fleet.runs_of(seed)) == 2)
    first.thaw()

    eventually(lambda: not is_alive(child))
    assert world.claims.read(id_).attempts == 2
    world.freeze(second)  # so that the next one is the first agent's
    other, _ = world.submit(Script.SUCCEED)
    eventually(lambda: world.claims.read(other).is_final)


def test_a_measurement_that_takes_every_agent_down_is_given_up(world: World) -> None:
    id_, seed = world.submit(Script.HANG)
    for _ in range(3):
        begun = len(world.fleet.runs_of(seed))
        agent = world.fleet.start_agent()
        eventually(partial(_is_begun_again, world, seed, begun))
        agent.kill()
    eventually(lambda: world.search() and world.claims.read(id_).is_final)

    failure = world.store.get(id_).failure
    assert failure is not None
    assert (failure.kind, len(world.fleet.runs_of(seed))) == ("agent_lost", 3)


def test_an_agent_on_a_database_without_tables_names_the_command_that_makes_them(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    empty = f"sqlite:///{tmp_path}/empty.db"
    without_queues = f"sqlite:///{copy_sqlite(migrated_sqlite, tmp_path)}"
    for url, missing in ((empty, "agents"), (without_queues, "workflow_status")):
        agent = AgentProcess(Settings(database_url=url), find_slot("cpu", None), run_scripted)
        with pytest.raises(UnmigratedError, match=rf"{missing}\): run `whatfits migrate` on it"):
            agent.serve()
