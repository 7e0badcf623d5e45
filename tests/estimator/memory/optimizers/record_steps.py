"""Records what steps of released optimizers allocate and free, into apollo_, galore_8bit_, sophia_ and badam_steps.json.

Run by hand: ``python -m tests.estimator.memory.optimizers.record_steps``, in an environment that also has badam 1.4 and
apollo-torch 1.0.3. The latter's licence (CC-BY-NC 4.0) keeps it out of the project's dependencies; the sizes it was
seen to allocate are facts, and are all that is kept. GaLore's 8-bit optimizer waits for a CUDA device after each parameter; here it steps on
the CPU and the wait is left out. Sophia is not a package: its sophia.py (commit a7e1572) has to be importable.
"""

import json
from pathlib import Path
from typing import Any

import galore_torch
import torch
from apollo_torch import APOLLOAdamW
from badam import BlockOptimizer
from sophia import SophiaG

from tests.estimator.memory.optimizers import references
from whatfits.profiler.trace.optimizer_step import StepEvent, StorageLog, trace_optimizer_step

HERE = Path(__file__).parent
APOLLO_NAMES = (
    "embedding",
    "vector",
    "head",
    "wide",
    "tall",
    "tall",
    "square",
    "rank above the shorter side",
)
GALORE_8BIT_NAMES = ("wide", "tall", "square", "rank above the shorter side", "embedding", "vector")
SOPHIA_NAMES = ("embedding", "wide", "vector", "tall", "vector of one", "square", "head")
BADAM_NAMES = ("wide", "vector", "tall", "square", "vector")
STEP_BYTES = 4
PHASES = ("first", "steady", "refresh")
SEED_BYTES = 15 * 8
"""APOLLO draws 15 int64 numbers for its next seed on the CPU; on CUDA they never touch the device."""


def plain(events: list[StepEvent]) -> list[list[Any]]:
    """Events as lists, without seed draws, blocks numbered anew; -1 for blocks older than the step."""
    kept = [event for event in events if event.nbytes != SEED_BYTES]
    numbers: dict[int, int] = {}
    for event in kept:
        if event.kind == "alloc":
            numbers[event.block] = len(numbers)
    return [[event.kind, numbers.get(event.block, -1), event.nbytes] for event in kept]


def record_apollo(dtype_bytes: int, rank: int, scale_type: str) -> dict[str, Any]:
    """First, steady and refresh step; each norm seems to have grown, so that the limiter acts."""
    parameters = references.make_parameters(APOLLO_NAMES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    settings = {"rank": rank, "update_proj_gap": 2, "scale": 1.0, "proj": "random", "proj_type": "std"}
    groups = references.groups(parameters, tensors, scale_type=scale_type, **settings)
    optimizer = APOLLOAdamW(groups, lr=1e-3)
    steps = {}
    for phase in PHASES:
        steps[phase] = plain(trace_optimizer_step(optimizer))
        for state in optimizer.state.values():
            if "scaled_grad" in state:
                state["scaled_grad"].mul_(0.01)
    return {"dtype_bytes": dtype_bytes, "rank": rank, "scale_type": scale_type, "steps": steps}


def record_galore_8bit(name: str, dtype_bytes: int, rank: int = 64) -> dict[str, Any]:
    """The same for one parameter of 8-bit GaLore; the full gradient is held, as a test holds what it compares."""
    parameters = references.make_parameters([name])
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    gradients = [tensor.grad for tensor in tensors]
    settings = {"rank": rank, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
    optimizer = galore_torch.GaLoreAdamW8bit(references.groups(parameters, tensors, **settings), lr=1e-3)
    # Its positional arguments land on these two in bitsandbytes 0.50; it means neither.
    optimizer.args.max_unorm = 0.0
    optimizer.args.skip_zeros = False
    steps = {}
    for phase in PHASES:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        steps[phase] = plain(trace_optimizer_step(optimizer))
    return {"parameter": name, "dtype_bytes": dtype_bytes, "rank": rank, "steps": steps}


def record_sophia(dtype_bytes: int) -> dict[str, Any]:
    """First, steady and another step of SophiaG; its Hessian is estimated outside ``step()``."""
    parameters = references.make_parameters(SOPHIA_NAMES)
    optimizer = SophiaG(references.torch_parameters(parameters, dtype_bytes, "cpu"))
    return {"dtype_bytes": dtype_bytes, "steps": {p: plain(trace_optimizer_step(optimizer)) for p in PHASES}}


def record_badam(dtype_bytes: int) -> dict[str, Any]:
    """First, steady and switching step of badam around AdamW with foreach, which is its default on CUDA."""
    parameters = references.make_parameters(BADAM_NAMES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    named = [(f"model.layers.0.{j}", tensor) for j, tensor in enumerate(tensors)]
    base = torch.optim.AdamW(tensors, foreach=True)
    optimizer = BlockOptimizer(base, named, switch_block_every=4, verbose=0)
    steps = {}
    for phase in PHASES:
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        held = [*tensors, *(t.grad for t in tensors), *optimizer.param_idx2hp.values()]
        log = StorageLog("cpu", [*held, *(t for state in base.state.values() for t in state.values())])
        del held
        with log:
            optimizer.step()
        log.close()
        # ``step`` is on the CPU on every device.
        steps[phase] = plain([event for event in log.events if event.nbytes != STEP_BYTES])
    return {"dtype_bytes": dtype_bytes, "steps": steps}


def write(path: Path, source: str, cases: list[dict[str, Any]], **head: Any) -> None:
    """One case per line."""
    header = json.dumps({"source": f"{source}, stepped on the CPU, torch {torch.__version__}", **head})
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{header[:-1]}, "cases": [\n{lines}\n]}}\n')


def main() -> None:
    """Write the recordings."""
    apollo = [
        record_apollo(dtype_bytes, rank, scale_type)
        for dtype_bytes in (4, 2)
        for rank, scale_type in ((64, "channel"), (1, "tensor"))
    ]
    write(HERE / "apollo_steps.json", "apollo-torch 1.0.3", apollo, parameters=APOLLO_NAMES)
    sophia = [record_sophia(s) for s in (4, 2)]
    write(HERE / "sophia_steps.json", "Liuhong99/Sophia, commit a7e1572", sophia, parameters=SOPHIA_NAMES)
    badam = [record_badam(s) for s in (4, 2)]
    write(HERE / "badam_steps.json", "badam 1.4", badam, parameters=BADAM_NAMES)
    torch.cuda.synchronize = lambda *_: None
    galore = [record_galore_8bit(name, s) for name in GALORE_8BIT_NAMES for s in (4, 2)]
    write(HERE / "galore_8bit_steps.json", "galore-torch 1.0, bitsandbytes 0.50.2", galore)


if __name__ == "__main__":
    main()
