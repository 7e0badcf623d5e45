"""Records what steps of FRUGAL's own code allocate and free, into frugal_steps.json.

Run by hand: ``python -m tests.estimator.memory.optimizers.record_frugal CHECKOUT``, with a checkout of fzmushko/FRUGAL at
commit c7ebe4c. It imports a function that torch has removed since, which is put back here.
"""

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from tests.estimator.memory.optimizers import references
from whatfits.profiler.trace.optimizer_step import trace_optimizer_step

NAMES = (
    "embedding",
    "wide",
    "square",
    "vector",
    "wide",
    "square",
    "wide",
    "square",
    "vector",
    "wide",
    "square",
    "head",
)
"""Eight linear weights, two of which are state-full at a time: the last two, then two of the same shapes."""
UPDATE_GAP = 2


def record(dtype_bytes: int, density: float) -> dict[str, Any]:
    """First, steady and refreshing step, and the bytes of each parameter's state after the first."""
    parameters = references.make_parameters(NAMES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    pairs = list(zip(parameters, tensors, strict=True))
    groups = [
        {"params": [t for p, t in pairs if not references.is_projected(p)], "is_proj_params": False},
        {"params": [t for p, t in pairs if references.is_projected(p)], "is_proj_params": True},
    ]
    # Importable only once its path and the removed function are there.
    optimizer = importlib.import_module("frugal.adamw").BlockAdamW(
        groups, density=density, update_gap=UPDATE_GAP, block_order="descending"
    )
    steps, states = {}, []
    for phase in ("first", "steady", "refresh"):
        events = trace_optimizer_step(optimizer)
        steps[phase] = [[event.kind, max(event.block, -1), event.nbytes] for event in events]
        if phase == "first":
            states = [references.held_bytes(optimizer.state[tensor]) for tensor in tensors]
    return {"dtype_bytes": dtype_bytes, "density": density, "states": states, "steps": steps}


def main() -> None:
    """Write the recording."""
    sys.path.insert(0, sys.argv[1])
    vars(importlib.import_module("torch.optim.optimizer"))["_dispatch_sqrt"] = math.sqrt
    cases = [record(dtype_bytes, density) for dtype_bytes in (4, 2) for density in (0.25, 1.0)]
    header = {"source": f"fzmushko/FRUGAL, commit c7ebe4c, stepped on the CPU, torch {torch.__version__}"}
    head = json.dumps({**header, "parameters": NAMES})
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_name("frugal_steps.json").write_text(f'{head[:-1]}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
