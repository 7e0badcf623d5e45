"""Measured runs on a CPU: what a result holds, and that its peak is the trace's."""

from typing import Any

import pytest

from tests.profiler.measure.requests import make_request, measured
from whatfits.estimator.specs import MeasuredStep, MeasurementOutcome, PeakPhase

EXACT: dict[str, dict[str, Any]] = {
    "accumulation": {"grad_accum_steps": 3},
    "checkpointing": {"activation_checkpointing": "full"},
    "accumulation with checkpointing": {"grad_accum_steps": 2, "activation_checkpointing": "full"},
    "layer-wise": {"layerwise_update": True, "activation_checkpointing": "full"},
    "eager attention": {"attention": "eager"},
    "fp32": {"precision": "fp32"},
    "autocast": {"precision": "bf16_mixed"},
    "a loop over parameters": {"optimizer": {"name": "adamw", "implementation": "for_loop"}},
}


@pytest.mark.parametrize("training", EXACT.values(), ids=EXACT)
def test_the_measured_peak_is_the_traces(training: dict[str, Any]) -> None:
    result, _ = measured(make_request(training=training, measured_steps=1))

    assert result.notes == ()
    assert result.peak_requested_bytes == result.traced_peak_requested_bytes


def test_a_result_says_what_every_step_took() -> None:
    result, told = measured(make_request(measured_steps=4))

    assert result.outcome is MeasurementOutcome.COMPLETED
    assert result.reached_phase is None
    assert result.reached_step == 3 + 1 + 4
    times = result.times
    assert [
        len(x) for x in (times.forward, times.loss, times.backward, times.optimizer_step, times.step)
    ] == [4] * 5
    assert times.refresh_step == ()
    parts = zip(times.forward, times.loss, times.backward, times.optimizer_step, strict=True)
    assert [sum(part) for part in parts] == pytest.approx(list(times.step))
    assert {(p.step, p.phase) for p in result.peaks} == {
        (step, phase) for step in (MeasuredStep.FIRST, MeasuredStep.STEADY) for phase in PeakPhase
    }
    assert max(p.peak_requested_bytes for p in result.peaks) == result.peak_requested_bytes
    assert [p.stage for p in told if p.done == p.total] == ["building", "warmup", "measuring", "tracing"]
