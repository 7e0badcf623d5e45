"""The store of measurements, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from threading import Barrier
from typing import TypeVar

import pytest
from sqlalchemy import Engine, func, select

from tests.measurements import NOON, make_environment, make_failure, make_measurement, make_result
from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import Measurement, MeasurementStatus, Progress
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.errors import ConflictError, NotFoundError, StoredDataError
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore, Outcome
from whatfits.service.storage.tables import EnvironmentRow, MeasurementRow, SpecRow

Answer = TypeVar("Answer")


def at_once(*calls: Callable[[], Answer]) -> list[Answer]:
    """The answers of calls that start together, each in a thread of its own."""
    barrier = Barrier(len(calls))

    def wait_and_call(call: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(wait_and_call, calls))


def count(engine: Engine, table: type[MeasurementRow | SpecRow | EnvironmentRow]) -> int:
    with reading(engine) as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_measurement_comes_back_as_it_was_stored(store: MeasurementStore) -> None:
    measurement = make_measurement(
        model={"model_type": "llama", "note": "\0 \ud800 é", "big": 2**70},
        status="succeeded",
        campaign="c-1",
        result=make_result(),
        warning="no agent",
        agent="agent-1",
        attempts=2,
        started_at=NOON.astimezone(timezone(timedelta(hours=5))),
        finished_at=NOON + timedelta(seconds=1.5),
        source="elsewhere",
    )
    assert store.add(measurement) == (measurement, True)
    assert store.get("m-1") == measurement


def test_times_come_back_in_utc_whatever_zone_they_were_given_in(store: MeasurementStore) -> None:
    store.add(make_measurement(created_at=NOON.astimezone(timezone(timedelta(hours=-8)))))
    created_at = store.get("m-1").created_at
    assert (created_at, created_at.utcoffset()) == (NOON, timedelta(0))


def test_what_is_not_there_is_said_to_be_missing(store: MeasurementStore) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.get("m-0"),
        lambda: store.begin("m-0", "agent-1"),
        lambda: store.finish("m-0", None),
        lambda: store.add_progress("m-0", Progress(stage="queued")),
        lambda: store.progress_after("m-0", 0),
        lambda: store.request_cancel("m-0"),
        lambda: store.cancel_requested("m-0"),
    )
    for call in calls:
        with pytest.raises(NotFoundError, match="there is no measurement 'm-0'"):
            call()


def test_an_id_is_taken_once(store: MeasurementStore) -> None:
    store.add(make_measurement(seed=1))
    with pytest.raises(ConflictError, match="'m-1' already"):
        store.add(make_measurement(seed=2))
    assert store.get("m-1").request.seed == 1


def test_specs_and_environments_are_stored_once(store: MeasurementStore, engine: Engine) -> None:
    other = make_environment(python="3.12")
    for number in range(3):
        store.add(make_measurement(f"m-{number}", seed=number))
        store.finish(f"m-{number}", make_result() if number else make_result(environment=other))
    store.add(make_measurement("m-3", model="llama-1b"))
    assert (count(engine, SpecRow), count(engine, EnvironmentRow)) == (2, 2)
    assert [store.get(f"m-{n}").result for n in range(2)] == [make_result(environment=other), make_result()]


def test_the_same_key_and_question_give_the_first_measurement(store: MeasurementStore) -> None:
    first, created = store.add(make_measurement("m-1"), idempotency_key="k")
    again, created_again = store.add(make_measurement("m-2"), idempotency_key="k")
    assert (created, created_again, again) == (True, False, first)
    with pytest.raises(NotFoundError):
        store.get("m-2")


@pytest.mark.parametrize("changes", [{"seed": 7}, {"campaign": "c"}])
def test_the_same_key_with_another_question_is_refused(
    store: MeasurementStore, changes: dict[str, object]
) -> None:
    store.add(make_measurement("m-1"), idempotency_key="k")
    with pytest.raises(ConflictError, match="idempotency key 'k'"):
        store.add(make_measurement("m-2", **changes), idempotency_key="k")


def test_the_same_key_at_once_stores_one(store: MeasurementStore, engine: Engine) -> None:
    def add(id_: str) -> Callable[[], tuple[Measurement, bool]]:
        return lambda: store.add(make_measurement(id_), idempotency_key="k")

    answers = at_once(*(add(f"m-{number}") for number in range(6)))
    assert sorted(created for _, created in answers) == [False] * 5 + [True]
    assert len({measurement.id for measurement, _ in answers}) == 1
    assert count(engine, MeasurementRow) == 1


def test_attempts_are_counted_and_the_first_beginning_is_kept(store: MeasurementStore) -> None:
    store.add(make_measurement())
    assert store.begin("m-1", "agent-1") == 1
    begun = store.get("m-1")
    assert store.begin("m-1", "agent-2") == 2
    again = store.get("m-1")
    assert (begun.status, begun.agent, begun.attempts) == (MeasurementStatus.RUNNING, "agent-1", 1)
    assert (again.agent, again.attempts, again.started_at) == ("agent-2", 2, begun.started_at)
    assert begun.started_at is not None


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (make_result(), MeasurementStatus.SUCCEEDED),
        (make_failure(), MeasurementStatus.FAILED),
        (None, MeasurementStatus.CANCELLED),
    ],
    ids=["result", "failure", "cancelled"],
)
def test_what_is_final_stays_as_it_is(
    store: MeasurementStore, outcome: Outcome, status: MeasurementStatus
) -> None:
    store.add(make_measurement())
    store.begin("m-1", "agent-1")
    assert store.finish("m-1", outcome) is True
    final = store.get("m-1")
    assert (final.status, final.result or final.failure) == (status, outcome)
    assert final.finished_at is not None
    assert store.begin("m-1", "agent-2") is None
    assert store.request_cancel("m-1") is False
    assert store.finish("m-1", make_failure(kind=FailureKind.RAISED)) is False
    assert store.finish("m-1", make_result(num_layers=9)) is False
    assert store.get("m-1") == final


def test_a_queued_one_can_be_finished(store: MeasurementStore) -> None:
    store.add(make_measurement())
    assert store.finish("m-1", None) is True
    assert store.get("m-1").started_at is None


def test_of_several_that_finish_at_once_one_does(store: MeasurementStore) -> None:
    store.add(make_measurement())
    store.begin("m-1", "agent-1")
    outcomes = (make_result(), make_failure(), None, make_result(num_layers=9), make_failure(message="x"))

    def finish(number: int) -> Callable[[], bool]:
        return lambda: store.finish("m-1", outcomes[number])

    won = at_once(*(finish(number) for number in range(len(outcomes))))
    assert won.count(True) == 1
    final = store.get("m-1")
    assert (final.result or final.failure) == outcomes[won.index(True)]


def test_beginnings_at_once_have_different_numbers(store: MeasurementStore) -> None:
    store.add(make_measurement())
    attempts = at_once(*(lambda: store.begin("m-1", "agent"),) * 5)
    assert sorted(number for number in attempts if number is not None) == [1, 2, 3, 4, 5]


def test_progress_is_read_on_from_where_one_was(store: MeasurementStore) -> None:
    store.add(make_measurement("m-1"))
    store.add(make_measurement("m-2"))
    reports = [Progress(stage="measuring", done=done, total=3, message="\0") for done in range(3)]
    assert [store.add_progress("m-1", report) for report in reports] == [1, 2, 3]
    assert store.add_progress("m-2", reports[0]) == 1
    assert store.progress_after("m-1", 0) == ((1, reports[0]), (2, reports[1]), (3, reports[2]))
    assert store.progress_after("m-1", 2) == ((3, reports[2]),)
    assert store.progress_after("m-1", 3) == ()


def test_progress_reported_at_once_is_numbered_without_gaps(store: MeasurementStore) -> None:
    store.add(make_measurement())
    numbers = at_once(*(lambda: store.add_progress("m-1", Progress(stage="warmup")),) * 6)
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_a_cancellation_is_asked_for_until_it_is_final(store: MeasurementStore) -> None:
    store.add(make_measurement())
    assert store.cancel_requested("m-1") is False
    assert store.request_cancel("m-1") is True
    assert store.request_cancel("m-1") is True
    assert store.cancel_requested("m-1") is True
    assert store.get("m-1").status is MeasurementStatus.QUEUED


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_column_holds_is_refused(store: MeasurementStore, text: str) -> None:
    with pytest.raises(InputError, match="text without NUL"):
        store.add(make_measurement(source=text))
    with pytest.raises(InputError, match="text without NUL"):
        store.list(MeasurementFilters(source=text))


def test_what_a_newer_version_wrote_is_said_to_be_unreadable(store: MeasurementStore, engine: Engine) -> None:
    store.add(make_measurement())
    with writing(engine) as session:
        row = session.get(MeasurementRow, "m-1")
        assert row is not None
        row.request = {**row.request, "of_tomorrow": 1}
    with pytest.raises(StoredDataError, match=r"'m-1'.*request\.of_tomorrow"):
        store.get("m-1")
