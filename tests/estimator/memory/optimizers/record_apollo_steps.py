"""Records what a step of the released APOLLO optimizer allocates and frees, into apollo_steps.json.

Run by hand, in an environment that has apollo-torch 1.0.3:
``python -m tests.estimator.memory.optimizers.record_apollo_steps``. Its licence (CC-BY-NC 4.0) keeps it out of the
project's dependencies; the sizes it was seen to allocate are facts, and are all that is kept.
"""

import json
from pathlib import Path
from typing import Any

import torch
from apollo_torch import APOLLOAdamW

from tests.estimator.memory.optimizers import references
from whatfits.profiler.trace.optimizer_step import StepEvent, trace_optimizer_step

STEPS = Path(__file__).with_name("apollo_steps.json")
NAMES = ("embedding", "wide", "vector", "tall", "tall", "square", "rank above the shorter side", "head")
SEED_BYTES = 15 * 8
"""`next_seed` draws 15 int64 numbers on the CPU; on CUDA they never touch the device."""


def without_seeds(events: list[StepEvent]) -> list[list[Any]]:
    """Events as lists, without the CPU's seed draws, blocks numbered anew; -1 for blocks older than the step."""
    kept = [event for event in events if event.nbytes != SEED_BYTES]
    numbers: dict[int, int] = {}
    for event in kept:
        if event.kind == "alloc":
            numbers[event.block] = len(numbers)
    return [[event.kind, numbers.get(event.block, -1), event.nbytes] for event in kept]


def record(dtype_bytes: int, rank: int, scale_type: str) -> dict[str, Any]:
    """First, steady and refresh step; each norm seems to have grown, so that the limiter acts."""
    parameters = references.make_parameters(NAMES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    settings = {"rank": rank, "update_proj_gap": 2, "scale": 1.0, "proj": "random", "proj_type": "std"}
    optimizer = APOLLOAdamW(
        references.groups(parameters, tensors, scale_type=scale_type, **settings), lr=1e-3
    )
    steps = {}
    for phase in ("first", "steady", "refresh"):
        steps[phase] = without_seeds(trace_optimizer_step(optimizer))
        for state in optimizer.state.values():
            if "scaled_grad" in state:
                state["scaled_grad"].mul_(0.01)
    return {"dtype_bytes": dtype_bytes, "rank": rank, "scale_type": scale_type, "steps": steps}


def main() -> None:
    """Write the recordings."""
    cases = [
        record(dtype_bytes, rank, scale_type)
        for dtype_bytes in (4, 2)
        for rank, scale_type in ((64, "channel"), (1, "tensor"))
    ]
    source = f"apollo-torch 1.0.3 stepped on the CPU, torch {torch.__version__}"
    lines = ",\n".join(json.dumps(case) for case in cases)
    STEPS.write_text(
        f'{{"source": {json.dumps(source)}, "parameters": {json.dumps(NAMES)}, "cases": [\n{lines}\n]}}\n'
    )


if __name__ == "__main__":
    main()
