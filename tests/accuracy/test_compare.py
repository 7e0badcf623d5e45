"""Estimates beside what an H100's counters said, and the figures made of them."""

import pytest

from benchmarks.accuracy.evaluate import Interpreters, evaluate
from benchmarks.accuracy.published_runs import run_of
from benchmarks.accuracy.recordings import (
    RecordedRow,
    load_caps,
    load_recordings,
    measured,
    recorded_reason,
    run_of_recording,
)
from benchmarks.accuracy.results import Comparison, NotRun, distribution, reasons
from whatfits.estimator.catalog.published import load_published
from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.specs import RunSpec

NO_INTERPRETERS = Interpreters([])


def recorded(part: str, **wanted: object) -> RecordedRow:
    """The one recorded case with these options, the recorder's defaults elsewhere."""
    options = {"optimizer": "adamw_foreach", "precision": "bf16", "steps": 8, **wanted}
    (row,) = (row for row in load_recordings() if row.part == part and row.spec == options)
    return row


@pytest.mark.parametrize(
    "options",
    [
        {"model": "llama-60m", "b": 16, "s": 512},
        {"model": "llama-60m", "b": 1, "s": 512},
        {"model": "llama-60m", "b": 16, "s": 512, "checkpointing": "non_reentrant"},
    ],
)
def test_a_recorded_run_is_estimated_to_the_byte(options: dict[str, object]) -> None:
    row = recorded("speed", **options)
    truth = measured(row)

    found = evaluate(run_of_recording(row), row.stack, NO_INTERPRETERS)

    assert recorded_reason(row) is None
    assert found.allocated == truth.peak_allocated
    for phase, requested in truth.requested_by_phase.items():
        assert abs(found.requested_by_phase[phase] - requested) <= 64, (
            phase
        )  # seeds of a few bytes are not traced


def test_a_row_is_evaluated_as_the_product_answers() -> None:
    run = run_of_recording(recorded("speed", model="llama-130m", b=3, s=1000))

    answer = estimate_run(RunSpec.model_validate(run))
    found = evaluate(run, {"transformers": "5.17"}, NO_INTERPRETERS)

    memory = answer.memory
    assert (found.allocated, found.reserved, found.required) == (
        memory.peak_allocated_bytes,
        memory.peak_reserved_bytes,
        memory.required_reserved_bytes,
    )
    assert (found.verdict, found.device_low, found.device_high) == (
        answer.fits,
        memory.device_bytes.low,
        memory.device_bytes.high,
    )


def test_a_published_row_becomes_the_run_its_source_describes() -> None:
    run = run_of(load_published()["vramcalc-08"])

    assert run["hardware"] == {"gpu": "rtx-a6000", "num_gpus": 1}
    assert run["model"]["hidden_size"] == 2048
    assert run["training"] == {
        "method": "lora",
        "precision": "bf16_mixed",
        "micro_batch_size": 1,
        "seq_len": 2048,
        "grad_accum_steps": 1,
        "optimizer": {"name": "adamw", "implementation": "foreach"},
        "activation_checkpointing": "none",
        "attention": "sdpa",
        "loop": {"set_grads_to_none": False, "keep_outputs": "backward", "empty_cache_each_step": True},
        "adapter": {"rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    }


def test_searched_caps_lie_between_what_failed_and_what_completed() -> None:
    for row, fails_at, completes_at in load_caps():
        assert 0 < completes_at - fails_at <= 2 << 20, row.id


def test_figures_over_rows() -> None:
    rows = [
        Comparison(row=str(n), source="s", quantity="q", measured=100.0, estimate=100.0 + error)
        for n, error in enumerate((-2.0, 0.0, 0.05, 4.0))
    ]

    found = distribution(rows)

    assert (found.number, found.under) == (4, 1)
    assert found.mean == pytest.approx(0.005125)
    assert found.mean_absolute == pytest.approx(0.015125)
    assert found.median_absolute == pytest.approx(0.01025)
    assert found.lowest == pytest.approx(-0.02)
    assert found.highest == pytest.approx(0.04)


def test_rows_that_were_not_run_are_counted_by_reason() -> None:
    rows = [NotRun(row=str(n), source="a", reason=reason) for n, reason in enumerate("xyx")]

    assert reasons(rows) == [("a", "x", 2), ("a", "y", 1)]
