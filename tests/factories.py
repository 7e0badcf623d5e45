"""Small valid specs; every change goes through validation."""

from typing import Any

from whatfits.estimator.catalog import find_gpu, model_from_config
from whatfits.estimator.specs import (
    GpuSpec,
    HardwareSpec,
    ModelSpec,
    OptimizerSpec,
    ParallelismSpec,
    PlanRequest,
    RunSpec,
    TrainingSpec,
)
from whatfits.estimator.specs.measurement import MeasurementResult, MeasureRequest

__all__ = [
    "make_config",
    "make_gpu",
    "make_hardware",
    "make_measure_request",
    "make_measurement_result",
    "make_model",
    "make_optimizer",
    "make_parallelism",
    "make_plan_request",
    "make_run",
    "make_training",
]


def make_config(**changes: Any) -> dict[str, Any]:
    """A tiny LLaMA's config.json; a change to None leaves the key out."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def make_model(**changes: Any) -> ModelSpec:
    """A tiny LLaMA, by changes to its config."""
    return model_from_config(make_config(**changes))


def make_optimizer(**changes: Any) -> OptimizerSpec:
    """AdamW."""
    return OptimizerSpec.model_validate(changes)


def make_training(**changes: Any) -> TrainingSpec:
    """AdamW in bf16 at 128 tokens."""
    return TrainingSpec.model_validate({"seq_len": 128, **changes})


def make_parallelism(**changes: Any) -> ParallelismSpec:
    """One rank."""
    return ParallelismSpec.model_validate(changes)


def make_hardware(**changes: Any) -> HardwareSpec:
    """One A100."""
    return HardwareSpec.model_validate({"gpu": "a100-80gb-sxm", **changes})


def make_gpu(**changes: Any) -> GpuSpec:
    """An A100 of the catalog."""
    return GpuSpec.model_validate({**find_gpu("a100-80gb-sxm").model_dump(), **changes})


def make_run(**changes: Any) -> RunSpec:
    """LLaMA 60M on one A100; dicts for `training`, `parallelism` and `hardware` change single fields of them."""
    base: dict[str, Any] = {
        "model": "llama-60m",
        "training": {"seq_len": 128},
        "hardware": {"gpu": "a100-80gb-sxm"},
    }
    for key, change in changes.items():
        merge = isinstance(change, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **change} if merge else change
    return RunSpec.model_validate(base)


def make_plan_request(**changes: Any) -> PlanRequest:
    """LLaMA 60M on one A100."""
    return PlanRequest.model_validate({"model": "llama-60m", "hardware": "a100-80gb-sxm", **changes})


def make_measure_request(**changes: Any) -> MeasureRequest:
    """Two measured steps on a CPU; a dict for `spec` changes single fields of the run."""
    run = make_run(**changes.pop("spec", {}))
    return MeasureRequest.model_validate({"device": "cpu", "spec": run, "measured_steps": 2, **changes})


def make_measurement_result(**changes: Any) -> MeasurementResult:
    """Two steps on a CPU."""
    result: dict[str, Any] = {
        "outcome": "completed",
        "reached_step": 5,
        "reached_phase": None,
        "num_layers": 8,
        "num_parameters": 58_073_600,
        "peaks": [{"step": "steady", "phase": "backward", "peak_requested_bytes": 600_000_000}],
        "peak_requested_bytes": 600_000_000,
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "times": {
            "forward": [0.1, 0.1],
            "loss": [],
            "backward": [0.2, 0.2],
            "optimizer_step": [0.1, 0.1],
            "step": [0.4, 0.42],
        },
        "tokens_per_second": 320.0,
        "mfu": None,
        "environment": {
            "device_name": "CPU",
            "packages": {"torch": "2.13.0"},
            "python": "3.11.2",
            "platform": "Linux",
        },
        **changes,
    }
    return MeasurementResult.model_validate(result)
