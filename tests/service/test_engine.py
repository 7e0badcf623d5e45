"""Jobs wait in durable queues, are taken once, and can be put back; on both databases, with a real worker."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from sqlalchemy import column, select, table

from tests.fleet.processes import eventually
from whatfits.service.engine import JOB_SCHEMA_VERSION, Engine, JobState, Worker
from whatfits.service.storage.database import open_database
from whatfits.service.storage.errors import StorageUnavailableError, UnmigratedError

QUEUE = "gpu/h100-80gb-sxm/x8"


@pytest.fixture
def url(ready_url: str) -> str:
    return ready_url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = Engine(url)
    yield engine
    engine.close()


@contextmanager
def working(
    url: str, carry_out: Callable[[str], None], *, job_schema_version: str = JOB_SCHEMA_VERSION
) -> Iterator[None]:
    worker = Worker(
        url,
        agent="a",
        queue=QUEUE,
        carry_out=carry_out,
        poll_seconds=0.05,
        job_schema_version=job_schema_version,
    )
    worker.start()
    try:
        yield
    finally:
        worker.stop()


def test_a_job_that_is_submitted_twice_is_carried_out_once(url: str, engine: Engine) -> None:
    done: list[str] = []
    engine.submit("m", QUEUE)
    engine.submit("m", QUEUE)

    with working(url, done.append):
        eventually(lambda: engine.states(["m"])["m"] is JobState.ENDED)
        engine.submit("m", QUEUE)
        engine.submit("n", QUEUE)
        eventually(lambda: engine.states(["n"])["n"] is JobState.ENDED)

    assert done == ["m", "n"]


def test_jobs_of_a_queue_are_carried_out_one_after_the_other(url: str, engine: Engine) -> None:
    lock = threading.Lock()
    alone: list[bool] = []

    def carry_out(_: str) -> None:
        alone.append(lock.acquire(blocking=False))
        threading.Event().wait(0.2)
        lock.release()

    for number in range(4):
        engine.submit(f"m{number}", QUEUE)
    with working(url, carry_out):
        eventually(lambda: len(alone) == 4)

    assert alone == [True] * 4


def test_jobs_of_other_queues_are_left(url: str, engine: Engine) -> None:
    done: list[str] = []
    engine.submit("elsewhere", "cpu/x1")
    engine.submit("here", QUEUE)

    with working(url, done.append):
        eventually(lambda: done)

    assert (done, engine.states(["elsewhere"])) == (["here"], {"elsewhere": JobState.WAITING})


def test_during_an_upgrade_agents_take_the_jobs_of_their_own_form_alone(url: str, engine: Engine) -> None:
    done: list[str] = []
    newer = Engine(url, job_schema_version="next")
    newer.submit("new", QUEUE)
    engine.submit("old", QUEUE)

    with working(url, done.append):
        eventually(lambda: done)
    taken_by_old = list(done)
    with working(url, done.append, job_schema_version="next"):
        eventually(lambda: len(done) == 2)
    newer.close()

    assert (taken_by_old, done) == (["old"], ["old", "new"])


def test_a_job_that_is_cancelled_while_it_waits_is_not_carried_out(url: str, engine: Engine) -> None:
    done: list[str] = []
    engine.submit("m", QUEUE)
    engine.cancel("m")
    engine.submit("n", QUEUE)

    with working(url, done.append):
        eventually(lambda: done)

    assert (done, engine.states(["m"])) == (["n"], {"m": JobState.CANCELLED})


def test_a_running_job_is_known_by_its_agent(url: str, engine: Engine) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def carry_out(_: str) -> None:
        begun.set()
        go_on.wait(30)

    engine.submit("m", QUEUE)
    with working(url, carry_out):
        begun.wait(30)
        held = (engine.states(["m"]), [job.agent for job in engine.running()], engine.pending_of("a"))
        go_on.set()
        eventually(lambda: engine.running() == ())

    assert held == ({"m": JobState.RUNNING}, ["a"], frozenset({"m"}))


def test_a_job_whose_carrying_out_raises_has_ended(url: str, engine: Engine) -> None:
    def carry_out(_: str) -> None:
        raise ValueError("a defect")

    engine.submit("m", QUEUE)
    with working(url, carry_out):
        eventually(lambda: engine.states(["m"])["m"] is JobState.ENDED)


def test_ending_or_resuming_what_never_was_in_a_queue_does_nothing(engine: Engine) -> None:
    engine.cancel("unknown")
    engine.resume("unknown", QUEUE)

    assert engine.states(["unknown"]) == {}


def test_nothing_that_is_stored_is_pickled(url: str, engine: Engine) -> None:
    engine.submit("m", QUEUE)

    database = open_database(url)
    jobs = table("workflow_status", column("serialization"), schema=None if "sqlite" in url else "dbos")
    with database.connect() as connection:
        found = connection.execute(select(jobs.c.serialization)).scalars().all()
    database.dispose()
    assert found == ["portable_json"]


def test_a_database_that_is_away_is_said_to_be() -> None:
    engine = Engine("postgresql://whatfits@127.0.0.1:1/nothing")

    with pytest.raises(StorageUnavailableError, match="cannot be reached"):
        engine.submit("m", QUEUE)
    engine.close()


def test_queues_without_tables_name_the_command_that_makes_them(database_url: str) -> None:
    engine = Engine(database_url)
    for ask in (engine.running, partial(engine.submit, "m", QUEUE), partial(engine.cancel, "m")):
        with pytest.raises(UnmigratedError, match=r"queues' part .*: run `whatfits migrate` on it"):
            ask()
    engine.close()
    with pytest.raises(UnmigratedError, match=r"another version\): run `whatfits migrate` on it"):
        _start_worker(database_url)


def test_a_worker_that_could_not_start_leaves_the_place_to_the_next(url: str, engine: Engine) -> None:
    done: list[str] = []

    async def start_within_an_event_loop() -> None:
        Worker(url, agent="a", queue=QUEUE, carry_out=print, poll_seconds=0.05).start()

    engine.submit("m", QUEUE)
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(start_within_an_event_loop())
    with working(url, done.append):
        eventually(lambda: done)

    assert done == ["m"]


def _start_worker(url: str) -> None:
    worker = Worker(url, agent="a", queue=QUEUE, carry_out=print, poll_seconds=0.05)
    try:
        worker.start()
    finally:
        worker.stop()
