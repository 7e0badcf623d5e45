"""The measuring child: a request in, lines of JSON out, whatever the model does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.profiler.measure.requests import GPT2, make_request
from whatfits.estimator.specs import (
    FailureKind,
    MeasurementFailure,
    MeasurementOutcome,
    MeasurementResult,
    MeasureRequest,
    Progress,
)
from whatfits.profiler.run import answer


def failure_of(request: MeasureRequest | str) -> MeasurementFailure:
    text = request if isinstance(request, str) else request.model_dump_json()
    last = answer(text, lambda _progress: None)
    assert last["event"] == "failure"
    return MeasurementFailure.model_validate(last["failure"])


def lines_of(command: list[str], request: MeasureRequest, folder: Path) -> list[dict[str, Any]]:
    """Lines that a child writes, with the request in a file as its standard input."""
    path = folder / "request.json"
    path.write_text(request.model_dump_json())
    with path.open() as file:
        done = subprocess.run(
            [sys.executable, *command, "-m", "whatfits.profiler.run"],
            stdin=file,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_child_tells_its_progress_and_ends_with_the_result(tmp_path: Path) -> None:
    *told, last = lines_of([], make_request(), tmp_path)

    assert {line["event"] for line in told} == {"progress"}
    stages = [Progress.model_validate(line["progress"]).stage for line in told]
    assert list(dict.fromkeys(stages)) == ["building", "warmup", "measuring", "tracing"]
    result = MeasurementResult.model_validate(last["result"])
    assert result.outcome is MeasurementOutcome.COMPLETED
    assert result.peak_requested_bytes == result.traced_peak_requested_bytes


def test_what_libraries_print_is_not_among_the_answers() -> None:
    code = (
        "import os, subprocess, sys; from whatfits.profiler.answers import claim_standard_output, write_answer;"
        "answers = claim_standard_output(); print('printed'); os.write(1, b'written');"
        "subprocess.run(['echo', 'echoed']); write_answer(answers, {'event': 'result'})"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == '{"event":"result"}\n'
    assert all(word in done.stderr for word in ("printed", "written", "echoed"))


def test_a_model_that_raises_is_a_failure_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path))

    failure = failure_of(make_request(model=GPT2, training={"seq_len": 64}))

    assert failure.kind is FailureKind.RAISED
    assert failure.message.startswith("IndexError: index out of range")
    assert failure.field is None


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("", "(input)", "not valid JSON"),
        ('{"device": "cpu"}', "spec", "missing"),
        (
            '{"spec": {"model": "llama-60m", "hardware": {"gpu": "h100"}, "modle": 1}}',
            "spec.modle",
            "there is no key 'modle'",
        ),
        (
            '{"spec": {"model": "llama-60m", "hardware": {"gpu": "h100"}}, "warmup_steps": 0}',
            "warmup_steps",
            "0",
        ),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_by_field(text: str, field: str, message: str) -> None:
    failure = failure_of(text)

    assert failure.kind is FailureKind.REFUSED
    assert failure.field == field
    assert message in failure.message


def test_a_name_nobody_knows_is_refused_by_field() -> None:
    failure = failure_of(make_request(model="llama-60x"))

    assert (failure.kind, failure.field) == (FailureKind.REFUSED, "spec.model")


def test_a_config_that_makes_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path))

    failure = failure_of(make_request(model={"model_type": "gpt2", "n_embd": 30, "n_head": 4}))

    assert failure.kind is FailureKind.REFUSED
    assert failure.field == "spec.model"


@pytest.mark.parametrize(
    "parallelism", [{"dp_replicate_degree": 2}, {"dp_shard_degree": 2, "zero_stage": 3}], ids=["ddp", "fsdp2"]
)
def test_two_ranks_are_measured_as_one_of_them(parallelism: dict[str, int], tmp_path: Path) -> None:
    request = make_request(
        hardware={"num_gpus": 2},
        training={"precision": "fp32"},
        spec={"parallelism": parallelism},
        measured_steps=1,
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    *_, last = lines_of(torchrun, request, tmp_path)

    result = MeasurementResult.model_validate(last["result"])

    assert result.outcome is MeasurementOutcome.COMPLETED
    assert result.notes[0] == "All figures are those of rank 0 of 2."
    if "zero_stage" in parallelism:  # sharded memory is not traced event by event
        assert result.traced_peak_requested_bytes is None
        assert result.num_parameters > 0
    else:  # DDP's buckets are a second copy of the gradients
        assert result.traced_peak_requested_bytes == result.peak_requested_bytes
