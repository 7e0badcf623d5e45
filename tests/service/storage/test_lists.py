"""Measurements by pages and filters, on SQLite and on PostgreSQL."""

from datetime import timedelta

import pytest

from tests.measurements import NOON, make_environment, make_measurement, make_result
from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import MeasurementStatus
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore


def test_pages_go_from_new_to_old_and_end(store: MeasurementStore) -> None:
    for number in range(7):  # three at the same moment
        store.add(make_measurement(f"m-{number}", created_at=NOON + timedelta(seconds=max(2, number))))
    pages = [store.list(limit=3)]
    while pages[-1].next_cursor is not None:
        pages.append(store.list(limit=3, cursor=pages[-1].next_cursor))
    assert [[m.id for m in page.items] for page in pages] == [
        ["m-6", "m-5", "m-4"],
        ["m-3", "m-2", "m-1"],
        ["m-0"],
    ]


def test_a_full_last_page_has_no_next_one(store: MeasurementStore) -> None:
    for number in range(2):
        store.add(make_measurement(f"m-{number}"))
    assert store.list(limit=2).next_cursor is None


def test_what_is_stored_between_pages_moves_nothing(store: MeasurementStore) -> None:
    for number in range(4):
        store.add(make_measurement(f"m-{number}", created_at=NOON + timedelta(seconds=number)))
    first = store.list(limit=2)
    store.add(make_measurement("new", created_at=NOON + timedelta(hours=1)))
    store.add(make_measurement("old", created_at=NOON - timedelta(hours=1)))
    rest = store.list(cursor=first.next_cursor)
    assert [m.id for m in (*first.items, *rest.items)] == ["m-3", "m-2", "m-1", "m-0", "old"]


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_a_page_has_a_limit(store: MeasurementStore, limit: int) -> None:
    with pytest.raises(InputError, match=r"limit: .* from 1 to 200"):
        store.list(limit=limit)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "bnVsbA==", "WzEsMl0=", "W10=", "WyIyMDI2LTExLTI0IiwgImEiXQ==",
     "WyIyMDI2LTExLTI0VDEyOjAwOjAwKzAwOjAwIiwgMV0="],
)  # fmt: skip
def test_a_cursor_of_ones_own_is_refused(store: MeasurementStore, cursor: str) -> None:
    with pytest.raises(InputError, match=r"cursor: .* next_cursor of the page before"):
        store.list(cursor=cursor)


@pytest.mark.parametrize(
    "filters",
    [
        MeasurementFilters(status=MeasurementStatus.SUCCEEDED),
        MeasurementFilters(queue="gpu/h100-80gb-sxm/x1"),
        MeasurementFilters(model="llama-1b"),
        MeasurementFilters(model="mine"),
        MeasurementFilters(optimizer="sgd"),
        MeasurementFilters(device_name="a GPU"),
        MeasurementFilters(campaign="c-1"),
        MeasurementFilters(source="elsewhere"),
        MeasurementFilters(agent="agent-1"),
    ],
    ids=str,
)
def test_filters_leave_what_they_name(store: MeasurementStore, filters: MeasurementFilters) -> None:
    given: dict[str, dict[str, object]] = {
        "status": {"status": "succeeded"},
        "queue": {"queue": filters.queue},
        "model": {"model": {"_name_or_path": "mine"} if filters.model == "mine" else filters.model},
        "optimizer": {"optimizer": filters.optimizer},
        "device_name": {"result": make_result(environment=make_environment(device_name="a GPU"))},
        "campaign": {"campaign": filters.campaign},
        "source": {"source": filters.source},
        "agent": {"agent": filters.agent},
    }
    (name,) = (name for name in given if getattr(filters, name) is not None)
    store.add(make_measurement("other"))
    store.add(make_measurement("wanted", **given[name]))
    assert [m.id for m in store.list(filters).items] == ["wanted"]


def test_filters_are_joined_by_and(store: MeasurementStore) -> None:
    store.add(make_measurement("m-1", optimizer="sgd", source="a"))
    store.add(make_measurement("m-2", optimizer="sgd", source="b"))
    store.add(make_measurement("m-3", optimizer="adamw", source="b"))
    found = store.list(MeasurementFilters(optimizer="sgd", source="b"))
    assert [m.id for m in found.items] == ["m-2"]
