"""Optimizer steps recorded on an H100: what the caching allocator did between the backward pass and the next step."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from whatfits.estimator.memory.optimizers import ParameterRole, ParameterTensor

__all__ = ["FFN", "HIDDEN", "recorded_cases", "recorded_parameters", "recorded_state_bytes", "recorded_step"]

RECORDING = (
    Path(__file__).parents[4] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24/steps.jsonl.gz"
)
HIDDEN, FFN, VOCABULARY = 512, 1376, 32_000


@cache
def _cases() -> dict[tuple[str, str], dict[str, Any]]:
    """The cases that step an optimizer other than the default one, by optimizer and precision."""
    found = {}
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            if '"optimizer":"adamw_foreach"' not in line and '"optimizer"' in line:
                case = json.loads(line)
                spec = case["spec"]
                if not spec.get("layerwise"):
                    found[spec["optimizer"], spec["precision"]] = case
    return found


def recorded_cases() -> list[tuple[str, str]]:
    """Optimizer and precision of every case, in alphabetical order."""
    return sorted(_cases())


def recorded_parameters(optimizer: str, precision: str) -> list[ParameterTensor]:
    """The recorded model's parameters in the order of its modules."""
    layers = _cases()[optimizer, precision]["spec"].get("layers", 3)
    linear = [(HIDDEN, HIDDEN)] * 4 + [(FFN, HIDDEN), (FFN, HIDDEN), (HIDDEN, FFN)]
    shapes: list[tuple[tuple[int, ...], ParameterRole]] = [((VOCABULARY, HIDDEN), ParameterRole.embedding)]
    for _ in range(layers):
        shapes += [(shape, ParameterRole.linear) for shape in linear]
        shapes += [((HIDDEN,), ParameterRole.vector)] * 2
    shapes += [((HIDDEN,), ParameterRole.vector), ((VOCABULARY, HIDDEN), ParameterRole.head)]
    return [ParameterTensor(name=str(i), shape=shape, role=role) for i, (shape, role) in enumerate(shapes)]


def recorded_state_bytes(optimizer: str, precision: str) -> int:
    """Bytes on the device that the recorded optimizer's state held after the last step, not rounded."""
    nbytes: int = _cases()[optimizer, precision]["notes"]["state_bytes"]
    return nbytes


def recorded_step(
    optimizer: str, precision: str, step: int, phase: str = "optimizer"
) -> list[tuple[str, int]]:
    """What one phase of one step allocated and freed, in order."""
    case = _cases()[optimizer, precision]
    phases, trace = case["phases"], case["trace"]
    (index,) = [j for j, p in enumerate(phases) if (p["phase"], p["step"]) == (phase, step)]
    events = [
        ("alloc" if action == "a" else "free", size)
        for action, size in zip(trace["actions"], trace["sizes"], strict=True)
        if action in "af"
    ]
    return events[phases[index]["events_before"] : phases[index + 1]["events_before"]]
