"""Measurements that come with the package."""

import gzip
from pathlib import Path

import pytest
from sqlalchemy import Engine

import benchmarks.shipped_measurements as converter
from tests.measurements import make_measurement, make_result
from whatfits.estimator.specs import Measurement, Progress
from whatfits.service.storage.exchange import read_lines
from whatfits.service.storage.measurements import MeasurementStore
from whatfits.service.storage.shipped import load_shipped, prepare_database, shipped_files


def write_file(folder: Path, name: str, *measurements: Measurement) -> Path:
    file = folder / name
    file.write_bytes(gzip.compress("".join(m.model_dump_json() + "\n" for m in measurements).encode()))
    return file


def make_shipped(id: str, source: str = "a", **changes: object) -> Measurement:  # noqa: A002
    return make_measurement(id, status="succeeded", result=make_result(), source=source, **changes)


def test_files_are_loaded_once_and_new_ones_when_they_come(
    engine: Engine, store: MeasurementStore, tmp_path: Path
) -> None:
    first = write_file(tmp_path, "a.jsonl.gz", make_shipped("a-1"), make_shipped("a-2"))
    assert load_shipped(engine, [first]) == 2
    assert load_shipped(engine, [first]) == 0
    second = write_file(tmp_path, "b.jsonl.gz", make_shipped("b-1", "b"))
    assert load_shipped(engine, [first, second]) == 1
    assert sorted(m.id for m in store.list().items) == ["a-1", "a-2", "b-1"]


def test_a_file_that_changed_replaces_what_it_brought_and_nothing_else(
    engine: Engine, store: MeasurementStore, tmp_path: Path
) -> None:
    store.add(make_measurement("own"))
    load_shipped(engine, [write_file(tmp_path, "a.jsonl.gz", make_shipped("a-1"), make_shipped("a-2"))])
    store.add_progress("a-1", Progress(stage="queued"))
    changed = make_shipped("a-1", seed=7)
    assert load_shipped(engine, [write_file(tmp_path, "a.jsonl.gz", changed)]) == 1
    assert sorted(m.id for m in store.list().items) == ["a-1", "own"]
    assert store.get("a-1") == changed


@pytest.fixture(scope="module")
def recorded() -> tuple[Measurement, ...]:
    (file,) = shipped_files()
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    return read_lines(lines, source=file.name)


def test_a_prepared_database_has_what_is_shipped(tmp_path: Path, recorded: tuple[Measurement, ...]) -> None:
    engine = prepare_database(f"sqlite:///{tmp_path}/whatfits.db")
    page = MeasurementStore(engine).list(limit=200)
    engine.dispose()
    assert sorted(page.items, key=lambda m: m.id) == list(recorded)


def test_what_is_shipped_is_what_the_recordings_convert_to(recorded: tuple[Measurement, ...]) -> None:
    """Estimates aside, and MFU, which follows from them: they are those of the version that wrote the file."""

    def without_estimate(measurement: Measurement) -> dict[str, object]:
        return measurement.model_dump(exclude={"estimate": True, "result": {"mfu"}})

    again = [without_estimate(measurement) for measurement in converter.convert(with_estimates=False)]
    assert [without_estimate(measurement) for measurement in recorded] == again


def test_what_is_shipped_agrees_with_the_estimates_beside_it(recorded: tuple[Measurement, ...]) -> None:
    """Allocated peaks of all 92 runs, with no constant fitted to them."""
    assert len(recorded) == 92
    for measurement in recorded:
        assert measurement.estimate is not None
        assert measurement.result is not None
        expected = measurement.estimate.memory.peak_allocated_bytes
        assert expected == pytest.approx(measurement.result.peak_allocated_bytes, rel=5e-3)


def test_every_sample_of_the_steps_after_the_first_is_kept(recorded: tuple[Measurement, ...]) -> None:
    for measurement in recorded:
        assert measurement.result is not None
        times = measurement.result.times
        assert len(times.step) + len(times.refresh_step) == measurement.request.measured_steps
        assert len(times.forward) == len(times.backward) == len(times.optimizer_step) == len(times.step)
