"""An attempt begins, runs and finishes a measurement; whatever happens on the way, the measurement ends once."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tests.measurements import make_failure, make_measurement, make_result
from whatfits.estimator.specs import MeasurementStatus, MeasureRequest, Progress
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.attempts import MAX_ATTEMPTS, Attempts
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.database import open_database
from whatfits.service.storage.errors import StorageFullError, StorageUnavailableError
from whatfits.service.storage.measurements import MeasurementStore, Outcome


class Desk:
    """A store with one queued measurement, and an agent's attempts at it."""

    def __init__(self, url: str, store: type[MeasurementStore] = MeasurementStore) -> None:
        engine = open_database(url)
        self.store = store(engine)
        self.claims = ClaimStore(engine)
        self.close = engine.dispose
        self.given_back: list[tuple[str, str]] = []
        self.store.add(make_measurement("m"))

    def attempts(self, run: Any, agent: str = "a") -> Attempts:
        return Attempts(
            agent=agent,
            store=self.store,
            claims=self.claims,
            run=run,
            give_back=lambda id_, queue: self.given_back.append((id_, queue)),
            store_patience_seconds=0.5,
            poll_seconds=0.01,
        )


@pytest.fixture
def desk(database_url: str) -> Any:
    desk = Desk(database_url)
    yield desk
    desk.close()


def answering(outcome: Outcome) -> Callable[..., Outcome]:
    return lambda *_, **__: outcome


def waiting(request: MeasureRequest, *, on_progress: Any, should_stop: Callable[[], bool]) -> None:
    while not should_stop():
        threading.Event().wait(0.01)


def test_a_result_makes_it_succeeded(desk: Desk) -> None:
    desk.attempts(answering(make_result())).carry_out("m")

    found = desk.store.get("m")
    assert (found.status, found.result, found.attempts, found.agent) == ("succeeded", make_result(), 1, "a")


def test_a_failure_makes_it_failed_with_the_reason(desk: Desk) -> None:
    desk.attempts(answering(make_failure())).carry_out("m")

    found = desk.store.get("m")
    assert (found.status, found.failure) == (MeasurementStatus.FAILED, make_failure())


def test_what_the_agent_itself_cannot_do_is_a_failure_of_the_measurement(desk: Desk) -> None:
    def refuse(request: MeasureRequest, **_: object) -> None:
        raise OSError(28, "No space left on device")

    desk.attempts(refuse).carry_out("m")

    failure = desk.store.get("m").failure
    assert failure is not None
    assert (failure.kind, "No space left on device" in failure.message) == (FailureKind.DIED, True)


def test_a_final_measurement_is_not_run_again(desk: Desk) -> None:
    desk.store.finish("m", make_failure())

    desk.attempts(answering(make_result())).carry_out("m")

    assert desk.store.get("m").failure == make_failure()


def test_one_that_is_gone_is_passed_over(desk: Desk) -> None:
    desk.attempts(answering(make_result())).carry_out("unknown")


def test_a_measurement_is_begun_three_times_and_then_failed(desk: Desk) -> None:
    for _ in range(MAX_ATTEMPTS):
        desk.store.begin("m", "dead")

    desk.attempts(answering(make_result())).carry_out("m")

    found = desk.store.get("m")
    assert found.failure is not None
    assert (found.status, found.failure.kind, found.attempts) == ("failed", FailureKind.AGENT_LOST, 3)


def test_one_that_was_cancelled_before_it_was_begun_is_not_run(desk: Desk) -> None:
    desk.store.request_cancel("m")

    desk.attempts(answering(make_result())).carry_out("m")

    assert (desk.store.get("m").status, desk.store.get("m").attempts) == (MeasurementStatus.CANCELLED, 0)


def test_one_that_is_cancelled_while_it_runs_is_ended(desk: Desk) -> None:
    def run(request: MeasureRequest, *, on_progress: Any, should_stop: Callable[[], bool]) -> None:
        desk.store.request_cancel("m")
        waiting(request, on_progress=on_progress, should_stop=should_stop)

    desk.attempts(run).carry_out("m")

    assert desk.store.get("m").status == MeasurementStatus.CANCELLED


def test_an_agent_that_is_told_to_end_gives_it_back_and_the_attempt_does_not_count(desk: Desk) -> None:
    def run(request: MeasureRequest, *, on_progress: Any, should_stop: Callable[[], bool]) -> None:
        attempts.stopping.set()
        waiting(request, on_progress=on_progress, should_stop=should_stop)

    attempts = desk.attempts(run)
    attempts.carry_out("m")

    claim = desk.claims.read("m")
    assert (claim.status, claim.attempts, desk.given_back) == ("queued", 0, [("m", "cpu/x1")])


def test_an_agent_that_ends_begins_nothing_new(desk: Desk) -> None:
    attempts = desk.attempts(answering(make_result()))
    attempts.stopping.set()

    attempts.carry_out("m")

    assert (desk.store.get("m").status, desk.given_back) == (MeasurementStatus.QUEUED, [("m", "cpu/x1")])


def test_an_attempt_that_was_given_to_another_agent_is_ended_and_leaves_the_measurement_alone(
    desk: Desk,
) -> None:
    def run(request: MeasureRequest, *, on_progress: Any, should_stop: Callable[[], bool]) -> None:
        desk.store.begin("m", "another")
        waiting(request, on_progress=on_progress, should_stop=should_stop)

    desk.attempts(run).carry_out("m")

    claim = desk.claims.read("m")
    assert (claim.status, claim.agent, claim.attempts) == (MeasurementStatus.RUNNING, "another", 2)


def test_a_result_that_comes_after_the_measurement_was_given_to_another_is_dropped(desk: Desk) -> None:
    def run(request: MeasureRequest, **_: object) -> Outcome:
        desk.store.begin("m", "another")
        return make_result()

    desk.attempts(run).carry_out("m")

    assert desk.store.get("m").status == MeasurementStatus.RUNNING


def test_progress_is_stored_in_order_and_all_of_it_before_the_end(desk: Desk) -> None:
    def run(request: MeasureRequest, *, on_progress: Any, **_: object) -> Outcome:
        for done in range(5):
            on_progress(Progress(stage="measuring", done=done, total=5))
        return make_result()

    desk.attempts(run).carry_out("m")

    reports = desk.store.progress_after("m", 0)
    assert [(number, report.done) for number, report in reports] == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]


class AwayStore(MeasurementStore):
    """Does not answer the first questions, as a database that starts again."""

    refusals = 3

    def finish(self, id: str, outcome: Outcome) -> bool:  # noqa: A002
        if self.refusals:
            self.refusals -= 1
            raise StorageUnavailableError("the database is starting up")
        return super().finish(id, outcome)


class FullStore(MeasurementStore):
    """Has no room for results; a failure is small enough."""

    def finish(self, id: str, outcome: Outcome) -> bool:  # noqa: A002
        if outcome == make_result():
            raise StorageFullError("the disk of the database is full")
        return super().finish(id, outcome)


def test_a_store_that_is_away_for_a_while_gets_the_result_later(database_url: str) -> None:
    desk = Desk(database_url, AwayStore)

    desk.attempts(answering(make_result())).carry_out("m")

    assert desk.store.get("m").status == MeasurementStatus.SUCCEEDED
    desk.close()


def test_a_result_that_no_disk_has_room_for_is_a_failure_that_says_so(database_url: str) -> None:
    desk = Desk(database_url, FullStore)

    desk.attempts(answering(make_result())).carry_out("m")

    failure = desk.store.get("m").failure
    assert failure is not None
    assert (failure.kind, "disk of the database is full" in failure.message) == (FailureKind.NOT_STORED, True)
    desk.close()


def test_a_disk_that_fills_up_is_told_and_the_next_measurement_goes_on(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    file = tmp_path / "full.db"
    shutil.copyfile(migrated_sqlite, file)
    engine = open_database(f"sqlite:///{file}")
    store, claims = MeasurementStore(engine), ClaimStore(engine)
    for id_ in ("large", "small"):
        store.add(make_measurement(id_))
    limits = {"pages": 0}

    def limit(connection: Any, _: object) -> None:
        if limits["pages"]:
            connection.execute(f"PRAGMA max_page_count = {limits['pages']}")

    event.listen(engine, "connect", limit)
    samples = tuple(number / 7 for number in range(5_000))
    times = make_result().times.model_copy(update={"step": samples})

    def fill(request: MeasureRequest, **_: object) -> Outcome:
        limits["pages"] = file.stat().st_size // 4096 + 8
        engine.dispose()  # every connection from now on finds a disk of that size
        return make_result().model_copy(update={"times": times})

    attempts = Attempts(
        agent="a", store=store, claims=claims, run=fill, give_back=lambda *_: None, store_patience_seconds=0.2
    )
    attempts.carry_out("large")
    attempts.run = answering(make_result())
    attempts.carry_out("small")

    failure = store.get("large").failure
    assert failure is not None
    assert (failure.kind, "is full" in failure.message) == (FailureKind.NOT_STORED, True)
    assert store.get("small").status == MeasurementStatus.SUCCEEDED
    engine.dispose()
