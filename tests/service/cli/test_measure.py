"""`whatfits measure`: a run in a child process, measured beside estimated; a stand-in takes the child's place."""

import io
import json
import sys
from pathlib import Path

import pytest

from tests.service.cli.measuring import SMALL, run, write_run, write_stand_in
from whatfits.estimator import estimate_run
from whatfits.estimator.specs import RunSpec
from whatfits.estimator.specs.measurement import Measurement, MeasurementStatus

ESTIMATED = estimate_run(
    RunSpec.model_validate(
        {
            **SMALL,
            "training": {
                **SMALL["training"],
                "optimizer": {"name": "apollo", "rank": 32, "implementation": "whatfits"},
            },
        }
    )
).memory
"""Of our own code, which is what runs."""


def test_json_is_the_measurement_with_its_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_stand_in(tmp_path)

    code, out, err = run(
        capsys, write_run(tmp_path), "--device", "cpu", "--python", python, "--steps", "2", "--json"
    )

    measurement = Measurement.model_validate_json(out)
    assert (code, err) == (0, "")
    assert measurement.status is MeasurementStatus.SUCCEEDED
    assert measurement.request.spec.training.optimizer.projection_update_interval is not None
    assert measurement.estimate is not None
    assert measurement.estimate.memory == ESTIMATED
    assert measurement.result is not None
    assert measurement.result.notes == ("cpu 3+2 ['-m', 'whatfits.profiler.run']",)


def test_standard_input_is_read_like_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(SMALL).encode())))

    code, out, _ = run(capsys, "-", "--device", "cpu", "--python", write_stand_in(tmp_path), "--json")

    assert code == 0
    assert json.loads(out)["request"]["spec"]["model"] == "galore-llama-60m"


def test_on_a_gpu_measured_stands_beside_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ESTIMATED.peak_allocated_bytes is not None
    python = write_stand_in(
        tmp_path,
        peak_requested_bytes=ESTIMATED.peak_requested_bytes,
        peak_allocated_bytes=ESTIMATED.peak_allocated_bytes * 2,
        peak_reserved_bytes=None,
    )

    code, out, _ = run(capsys, write_run(tmp_path), "--device", "gpu", "--python", python)

    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert code == 0
    assert "completed: 5 steps" in out
    assert lines["requested (live tensors)"].endswith("+0 (+0.000%)")
    assert lines["allocated (max_memory_allocated)"].endswith(
        f"{ESTIMATED.peak_allocated_bytes:,}  +{ESTIMATED.peak_allocated_bytes:,} (+100.000%)"
    )
    assert "410 ms" in lines["step (median of 2)"]
    assert " us" in lines["step (median of 2)"] or " ms" in lines["step (median of 2)"].replace("410 ms", "")


def test_on_a_cpu_it_stands_beside_the_trace_with_the_cpu_s_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_stand_in(tmp_path, traced_peak_requested_bytes=600_000_000)

    code, out, _ = run(capsys, write_run(tmp_path), "--device", "cpu", "--python", python, "--layers", "4")

    assert code == 0
    assert "600,000,000       600,000,000  +0 (+0.000%)" in out
    assert "requested, estimated on a100-80gb-sxm" in out
    assert "llama-60m at 4 layers" in out


def test_fewer_layers_are_estimated_as_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = write_stand_in(tmp_path)

    _, out, _ = run(
        capsys, write_run(tmp_path), "--device", "cpu", "--python", python, "--layers", "4", "--json"
    )

    measurement = Measurement.model_validate_json(out)
    assert measurement.request.num_layers == 4
    assert measurement.request.spec.model == "galore-llama-60m"
    assert measurement.estimate is not None
    assert measurement.estimate.memory.breakdown.weights < ESTIMATED.breakdown.weights


def test_what_is_not_modelled_is_measured_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_stand_in(tmp_path)

    code, out, _ = run(capsys, write_run(tmp_path), "--device", "cpu", "--python", python, "--layers", "1")

    assert code == 0
    assert "not estimated: model.num_layers: " in out


def test_out_of_memory_is_a_result_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = write_stand_in(tmp_path, outcome="out_of_memory", reached_phase="backward", reached_step=0)

    code, out, _ = run(capsys, write_run(tmp_path), "--device", "cpu", "--python", python)

    assert code == 1
    assert "out of memory in backward, after 0 steps" in out


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (
            "sys.exit('no torch here')",
            3,
            "error: not measured (died): the measuring process ended with status 1",
        ),
        (
            'answer("failure", {"kind": "raised", "message": "KeyError: 1"}); sys.exit()',
            3,
            "error: not measured (raised): KeyError: 1",
        ),
        (
            'answer("failure", {"kind": "refused", "message": "no such", "field": "spec.training.loss"}); sys.exit()',
            2,
            "error: spec.training.loss: no such; accepted: a run that is measured",
        ),
    ],
)
def test_no_measurement_exits_with_whose_fault_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, code: int, said: str
) -> None:
    python = write_stand_in(tmp_path, body)

    status, out, err = run(capsys, write_run(tmp_path), "--device", "cpu", "--python", python)

    assert (status, out) == (code, "")
    assert err.startswith(said)


def test_a_run_that_takes_too_long_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = write_stand_in(tmp_path, "import time; time.sleep(600)")

    code, _, err = run(capsys, write_run(tmp_path), "--device", "cpu", "--python", python, "--timeout", "1")

    assert code == 3
    assert err == "error: not measured (timed_out): no result within 1 s; it was measuring, 1 of 2 done\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "error: --device: 'tpu' is not accepted; accepted: gpu, cpu"),
        (["--find", "rank"], "error: --find: 'rank' is not accepted; accepted: max-micro-batch"),
        (["--layers", "9", "--device", "cpu"], "error: num_layers: 9 is above the 8 layers of llama-60m"),
        (["--cap", "much", "--device", "cpu"], "error: --cap: 'much' is not accepted"),
        (
            ["--device", "cpu", "--find", "max-micro-batch"],
            "error: hardware.memory_cap_bytes: a CPU has no memory",
        ),
        (["--steps", "0"], "--steps"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_bad_input_exits_2_and_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = run(capsys, write_run(tmp_path), "--python", write_stand_in(tmp_path), *arguments)

    assert (code, out) == (2, "")
    assert said in err


def test_an_unknown_key_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, write_run(tmp_path, optimiser={}), "--device", "cpu")

    assert code == 2
    assert "optimiser" in err
