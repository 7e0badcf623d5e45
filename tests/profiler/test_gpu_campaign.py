"""The standing campaign: its schedule, and its twin on a CPU from end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_measurement_result
from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.specs import MeasureDevice
from whatfits.estimator.specs.low_rank import RANKED_OPTIMIZERS
from whatfits.estimator.specs.measurement import (
    FailureKind,
    Measurement,
    MeasurementFailure,
    MeasureRequest,
)
from whatfits.profiler.gpu_campaign import main
from whatfits.profiler.measure.campaign_run import CampaignRun
from whatfits.profiler.measure.child_process import Answer
from whatfits.profiler.measure.differences import difference, format_table, summary
from whatfits.profiler.measure.local import measure_here
from whatfits.profiler.measure.schedule import ResultFile
from whatfits.profiler.measure.standing import Point, standing_campaign


@pytest.fixture(scope="module")
def points() -> tuple[Point, ...]:
    return standing_campaign(MeasureDevice.GPU, "h100-80gb-sxm")


def training_of(point: Point) -> Any:
    return point.request.spec.training


def test_optimizers_come_first_then_the_other_axes(points: tuple[Point, ...]) -> None:
    names = [training_of(point).optimizer.name for point in points]
    num_optimizers = len(set(names))

    assert num_optimizers >= 26
    assert len(set(names[:num_optimizers])) == num_optimizers
    assert names[0] == "adamw"
    soon = points[: num_optimizers + 25]
    assert {training_of(point).activation_checkpointing for point in soon} == {"none", "full"}
    assert len({training_of(point).precision for point in soon}) == 5
    assert len({training_of(point).seq_len for point in soon}) == 4
    assert len({training_of(point).micro_batch_size for point in soon}) == 3
    assert len({point.request.spec.model for point in soon}) == 2


def test_the_whole_is_every_optimizer_of_two_shapes_at_three_ranks_and_batches(
    points: tuple[Point, ...],
) -> None:
    def combinations(name: str, model: str) -> set[tuple[int | None, int]]:
        return {
            (training_of(point).optimizer.rank, training_of(point).micro_batch_size)
            for point in points
            if training_of(point).optimizer.name == name and point.request.spec.model == model
        }

    assert len({point.name for point in points}) == len(points) >= 200
    sizes = [resolve_model(name)[0].num_parameters for name in ("galore-llama-350m", "galore-llama-1b")]
    assert [round(size / 1e8) for size in sizes] == [4, 13]
    for model in ("galore-llama-350m", "galore-llama-1b"):
        assert combinations("adamw", model) == {(None, size) for size in (1, 4, 8)}
        assert combinations("galore_adamw", model) == {(r, b) for r in (64, 128, 256) for b in (1, 4, 8)}
    assert {training_of(p).optimizer.name for p in points} & RANKED_OPTIMIZERS


def test_the_dry_run_prints_40_points_and_more_with_time_and_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"

    assert main(["--dry-run", "--gpu", "h100-80gb-sxm", "--only", "350m-adamw-", "--out", str(out)]) == 0

    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("   1  galore-llama-350m-adamw-bf16-mb4-seq512  ")
    assert all(" s  " in line and " B (" in line and "allocated" in line for line in lines)
    assert last.startswith(f"{len(lines)} points in about ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes: 0 is not accepted; accepted: above 0"),
        (["--jobs", "0"], "--jobs: 0 is not accepted; accepted: 1 to 16"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_options_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="needs a machine without NVIDIA's driver")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no GPU of the catalog: name it with --gpu, or use --dry-run" in capsys.readouterr().err


def test_the_cpu_twin_measures_compares_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One real point: a child process, its events beside the program's, and nothing to do the second time."""
    out = tmp_path / "results.jsonl"
    arguments = [
        "--device",
        "cpu",
        "--only",
        "4-adamw-bf16-mb2-seq32-ckpt",
        "--out",
        str(out),
        "--commit",
        "abc",
    ]

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert main(arguments) == 0

    (measurement,) = ResultFile(out).read()
    assert measurement.result is not None
    assert measurement.campaign == "standing"
    assert measurement.result.environment.commit == "abc"
    assert difference(measurement)["requested"] == 0
    (compared,) = json.loads(out.with_suffix(".events.json").read_text()).values()
    _, *steps = compared["sections"]
    assert [step["first_difference"] for step in steps] == [None, None, None]
    assert (tmp_path / str(measurement.result.snapshot_path)).is_file()
    assert json.loads(out.with_suffix(".summary.json").read_text())["within"]["requested"] == 1
    assert "llamaforcausallm4-adamw-bf16-mb2-seq32-ckpt_full" in printed


def measured(request: MeasureRequest, answer: Callable[[Measurement], Answer]) -> Measurement:
    """A measurement whose answer is made from what was expected."""
    expected = measure_here(request, lambda _: None)
    return measure_here(request, lambda _: answer(expected))


def test_differences_are_flagged_and_failures_named(points: tuple[Point, ...]) -> None:
    def scaled(allocated: float, reserved: float) -> Callable[[Measurement], Answer]:
        def answer(expected: Measurement) -> Answer:
            assert expected.estimate is not None
            memory = expected.estimate.memory
            assert memory.peak_allocated_bytes is not None
            assert memory.peak_reserved_bytes is not None
            return make_measurement_result(
                peak_requested_bytes=memory.peak_requested_bytes,
                peak_allocated_bytes=round(memory.peak_allocated_bytes * allocated),
                peak_reserved_bytes=round(memory.peak_reserved_bytes * reserved),
            )

        return answer

    request = points[0].request
    named = [
        ("exact", measured(request, scaled(1.0, 1.0))),
        ("near", measured(request, scaled(1.004, 0.98))),
        ("far", measured(request, scaled(1.006, 0.96))),
        (
            "broken",
            measured(request, lambda _: MeasurementFailure(kind=FailureKind.RAISED, message="KeyError\nat")),
        ),
    ]

    found = summary(named)

    assert found["by_status"] == {"succeeded": 3, "failed": 1}
    assert found["compared"] == {"requested": 3, "allocated": 3, "reserved": 3}
    assert found["within"] == {"requested": 3, "allocated": 2, "reserved": 2}
    assert found["flagged"] == {"far": ["allocated", "reserved"]}
    assert found["failed"] == {"broken": "KeyError\nat"}
    table = format_table(named).splitlines()
    assert len(table) == 5
    assert table[3].endswith("allocated, reserved")
    assert "+0.600%" in table[3]
    assert "-4.000%" in table[3]
    assert "failed: KeyError" in table[4]


def test_points_at_a_time_are_all_kept_and_their_times_marked(tmp_path: Path) -> None:
    def answer(request: MeasureRequest) -> Answer:
        if request.spec.training.optimizer.name == "sgd":
            return MeasurementFailure(kind=FailureKind.RAISED, message="KeyError: 1")
        return make_measurement_result(traced_peak_requested_bytes=600_000_000)

    said: list[str] = []
    out = tmp_path / "deep" / "results.jsonl"
    run = CampaignRun(
        device=MeasureDevice.CPU,
        gpu="h100-80gb-sxm",
        out=out,
        minutes=10,
        jobs=2,
        only="4-sgd",
        say=said.append,
        run=answer,
    )

    run.carry_out()

    kept = ResultFile(out).read()
    assert len(kept) == len(
        [line for line in said if (" in " in line and "succeeded" in line) or "failed in" in line]
    )
    assert {str(each.status) for each in kept} == {"succeeded", "failed"}
    assert all(
        each.warning and each.warning.endswith("beside other runs on the same device.") for each in kept
    )
    assert said[-1] == f"written to {out}"
    assert set(json.loads(out.with_suffix(".summary.json").read_text())["failed"].values()) == {"KeyError: 1"}
