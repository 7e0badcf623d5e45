"""Measurements as JSON lines."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.measurements import NOON, make_failure, make_measurement, make_result
from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import Measurement
from whatfits.service.storage.exchange import Imported, export_lines, import_measurements, read_lines
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore

DONE: dict[str, Any] = {"status": "succeeded", "result": make_result(), "source": "elsewhere"}


def line_of(measurement: Measurement, **changes: object) -> str:
    return json.dumps({**measurement.model_dump(mode="json"), **changes})


def test_what_is_exported_is_imported_as_it_was(engine: Engine, store: MeasurementStore) -> None:
    given = [
        make_measurement("m-1", **DONE, model={"model_type": "llama", "note": "\u2028 \0 é"}),
        make_measurement(
            "m-2", status="failed", failure=make_failure(message="\x85 gone"), source="elsewhere"
        ),
        make_measurement("m-3", status="cancelled", source="elsewhere"),
    ]
    lines = "".join(line_of(measurement) + "\n" for measurement in given)
    read = read_lines(lines.split("\n"), source="file")
    assert import_measurements(engine, read) == Imported(new=3, known=0)
    assert [store.get(m.id) for m in given] == given
    exported = "".join(export_lines(store))
    assert sorted(read_lines(exported.split("\n"), source="x"), key=lambda m: m.id) == given


def test_importing_again_changes_nothing(engine: Engine, store: MeasurementStore) -> None:
    first = make_measurement("m-1", **DONE, seed=1)
    import_measurements(engine, [first])
    other = make_measurement("m-1", **DONE, seed=2)
    assert import_measurements(engine, [other, make_measurement("m-2", **DONE)]) == Imported(new=1, known=1)
    assert store.get("m-1") == first


def test_only_what_is_final_is_exported_over_all_pages(store: MeasurementStore) -> None:
    for number in range(205):
        store.add(make_measurement(f"m-{number:03}", **DONE, created_at=NOON + timedelta(seconds=number)))
    store.add(make_measurement("queued", source="elsewhere"))
    ids = [json.loads(line)["id"] for line in export_lines(store)]
    assert ids == [f"m-{number:03}" for number in reversed(range(205))]


def test_an_export_can_be_filtered(store: MeasurementStore) -> None:
    store.add(make_measurement("m-1", **DONE, campaign="c"))
    store.add(make_measurement("m-2", **DONE))
    (line,) = export_lines(store, MeasurementFilters(campaign="c"))
    assert json.loads(line)["id"] == "m-1"


def test_what_was_local_elsewhere_is_named_after_where_it_comes_from() -> None:
    local, named = make_measurement(**{**DONE, "source": "local"}), make_measurement(**DONE)
    read = read_lines([line_of(local), line_of(named)], source="box.jsonl")
    assert [measurement.source for measurement in read] == ["box.jsonl", "elsewhere"]


GOOD = line_of(make_measurement(**DONE))
SPEC = {"model": "llama-7b", "hardware": {"gpu": "h100-80gb-sxm"}, "trainin": {}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON: "),
        ("[1]", "line 2: a JSON object is expected, not list"),
        ('{"id": 1, "id": 2}', 'line 2: not JSON: the key "id" is given twice'),
        ('{"id": NaN}', "line 2: not JSON: NaN is not a JSON value"),
        (line_of(make_measurement(**DONE), oops=1), "line 2: oops: there is no key 'oops' here"),
        (line_of(make_measurement(**DONE), request={"spec": SPEC}), "line 2: request.spec.trainin: "),
        (line_of(make_measurement(**DONE), created_at="2026-11-24T12:00:00"), "line 2: created_at: "),
        (line_of(make_measurement(**DONE), attempts="many"), "line 2: attempts: 'many' is not accepted"),
        (line_of(make_measurement()), "line 2: status: 'queued' is not accepted; accepted: succeeded, failed, cancelled"),
        (line_of(make_measurement(status="succeeded")), "line 2: result: it is missing, but the status is succeeded"),
        (line_of(make_measurement(status="failed")), "line 2: failure: it is missing, but the status is failed"),
        (line_of(make_measurement(**DONE), status="failed", failure=make_failure(message="x").model_dump(mode="json")),
         "line 2: result: it is given, but the status is failed"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_its_field(line: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_lines([GOOD, line, GOOD], source="x")
    assert str(caught.value).startswith(said)


def test_of_a_set_that_cannot_be_stored_nothing_is(engine: Engine, store: MeasurementStore) -> None:
    bad = make_measurement("m-2", **{**DONE, "source": "a\0b"})
    with pytest.raises(InputError, match="NUL"):
        import_measurements(engine, [make_measurement("m-1", **DONE), bad])
    assert store.list().items == ()
