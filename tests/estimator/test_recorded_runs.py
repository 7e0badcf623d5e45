"""Estimates of runs that an H100 recorded: `max_memory_allocated` over all steps, with no constant fitted to it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_config
from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.specs import RunSpec
from whatfits.profiler.measure.recordings import RecordedCase, read_recording

SPEED = Path(__file__).parents[2] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24/speed.jsonl.gz"
MODELS = {
    "llama-60m": {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8},
    "llama-130m": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12},
    "llama-7b": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
}  # fmt: skip
PLAIN = {"precision": "bf16", "optimizer": "adamw_foreach", "steps": 8}
ADAMW = {"optimizer": {"name": "adamw"}}
FUSED = {"optimizer": {"name": "adamw", "implementation": "fused"}}

RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model": "llama-60m", "b": 16, "s": 512}, ADAMW),
    ({"model": "llama-60m", "b": 16, "s": 512, "accum": 4}, {**ADAMW, "grad_accum_steps": 4}),
    ({"model": "llama-60m", "b": 16, "s": 512, "clip": "default"}, {**ADAMW, "gradient_clipping": True}),
    ({"model": "llama-130m", "b": 3, "s": 1000}, ADAMW),
    (
        {"model": "llama-130m", "b": 64, "s": 512, "checkpointing": "non_reentrant"},
        {**ADAMW, "activation_checkpointing": "full"},
    ),
    (
        {"model": "llama-7b", "b": 1, "s": 2048, "optimizer": "adamw_fused", "layerwise": True, "steps": 4},
        {**FUSED, "layerwise_update": True},
    ),
    (
        {"model": "llama-7b", "b": 1, "s": 256, "steps": 4},
        ADAMW,
    ),
]
"""Recorded specs and the same training in the product's words."""


@cache
def cases() -> tuple[RecordedCase, ...]:
    return tuple(read_recording(SPEED))


def steps_of(case: RecordedCase, counter: str) -> int:
    return max(int(phase[counter]) for phase in case.phases if phase["step"] >= 0 and counter in phase)


@pytest.mark.parametrize(("spec", "training"), RUNS, ids=[str(spec) for spec, _ in RUNS])
def test_peaks_of_recorded_runs(spec: dict[str, Any], training: dict[str, Any]) -> None:
    """Requested bytes leave what kernels hide; allocated ones also where each block happened to be placed."""
    (case,) = (c for c in cases() if c.spec == {**PLAIN, **spec})
    heads = MODELS[spec["model"]]["num_attention_heads"]
    run = {
        "model": make_config(**MODELS[spec["model"]], num_key_value_heads=heads, vocab_size=32000),
        "training": {"micro_batch_size": spec["b"], "seq_len": spec["s"], **training},
        "hardware": {"gpu": "h100-80gb-sxm"},
    }

    memory = estimate_run(RunSpec.model_validate(run)).memory

    assert memory.peak_allocated_bytes == pytest.approx(steps_of(case, "peak_allocated"), rel=1e-3)
    assert memory.peak_requested_bytes == pytest.approx(steps_of(case, "peak_requested"), rel=1e-4)
