"""`whatfits measure --find max-micro-batch`, with a stand-in for the process that measures."""

from pathlib import Path

import pytest

from tests.service.cli.measuring import run, write_run, write_stand_in
from whatfits.estimator.specs.micro_batch_search import MicroBatchSearch

PER_SEQUENCE = 'result["peak_requested_bytes"] = 200 * 2**20 + size * 10 * 2**20'


def test_the_largest_micro_batch_is_found_under_a_cap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_stand_in(tmp_path, PER_SEQUENCE)
    question = (write_run(tmp_path), "--device", "cpu", "--python", python, "--find", "max-micro-batch")

    code, out, _ = run(capsys, *question, "--cap", "333MiB", "--json")

    found = MicroBatchSearch.model_validate_json(out)
    sizes = [probe.request.spec.training.micro_batch_size for probe in found.probes]
    assert (code, found.max_micro_batch_size, found.smallest_too_large) == (0, 13, 14)
    assert {13, 14} <= set(sizes)
    assert len(sizes) == len(set(sizes)) < 12
    assert found.probes[0].request.measured_steps == 1


def test_where_not_even_one_sequence_runs_it_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = write_stand_in(tmp_path, 'result["outcome"] = "out_of_memory"')

    code, out, _ = run(
        capsys, write_run(tmp_path), "--device", "gpu", "--python", python, "--find", "max-micro-batch"
    )

    assert code == 1
    assert out.startswith("not even one sequence runs\n")


def test_a_search_whose_run_fails_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = write_stand_in(tmp_path, "sys.exit(9)")

    code, out, err = run(
        capsys, write_run(tmp_path), "--device", "gpu", "--python", python, "--find", "max-micro-batch"
    )

    assert (code, out) == (3, "")
    assert "ended with status 9" in err
