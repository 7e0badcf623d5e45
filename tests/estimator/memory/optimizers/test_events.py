"""What the programs say a step allocates and frees equals the traced step, event for event."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.estimator.memory.optimizers import references
from tests.estimator.memory.optimizers.phases import (
    ORDERS,
    Event,
    outputs_sorted,
    program_phases,
    traced_phases,
)
from whatfits.estimator.memory.optimizers import (
    AdamW8bit,
    AdamWForeach,
    AdamWForLoop,
    AdamWFused,
    Apollo,
    GaLoreAdamW,
    GaLoreAdamW8bit,
    OptimizerProgram,
    Sgd,
    StepPhase,
)
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.galore import PARAMETER_NORM, UNORM_VECTOR

RANK = 64
TORCH_CASES: dict[
    str, tuple[Callable[[int], OptimizerProgram], Callable[[Any], torch.optim.Optimizer], str]
] = {
    "sgd for_loop": (
        lambda s: Sgd(param_dtype_bytes=s),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, foreach=False),
        "meta",
    ),
    "sgd foreach": (
        lambda s: Sgd(param_dtype_bytes=s),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, foreach=True),
        "meta",
    ),
    "adamw for_loop": (
        lambda s: AdamWForLoop(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, foreach=False),
        "meta",
    ),
    "adamw foreach": (
        lambda s: AdamWForeach(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, foreach=True),
        "meta",
    ),
    # On the CPU the kernel is fused as well, and `step` lives where it does on CUDA: beside the parameter.
    "adamw fused": (
        lambda s: AdamWFused(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, fused=True),
        "cpu",
    ),
}


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", TORCH_CASES)
def test_torch_optimizers(case: str, order: str, dtype_bytes: int) -> None:
    build, reference, device = TORCH_CASES[case]
    parameters = references.make_parameters(ORDERS[order])
    optimizer = reference(references.torch_parameters(parameters, dtype_bytes, device))

    traced = traced_phases(optimizer, refresh_step=2)

    assert program_phases(build(dtype_bytes), parameters) == traced


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
def test_bitsandbytes(order: str, dtype_bytes: int) -> None:
    """On the CPU the quantisation maps are there from the start; on CUDA the first step brings them over."""
    parameters = references.make_parameters(ORDERS[order])
    optimizer = references.adamw_8bit(references.torch_parameters(parameters, dtype_bytes, "cpu"))

    traced = traced_phases(optimizer, refresh_step=2)
    program = AdamW8bit(param_dtype_bytes=dtype_bytes)

    assert program_phases(program, parameters, without_owner="optimizer") == traced


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
def test_galore(order: str, dtype_bytes: int) -> None:
    """What the SVD allocates inside its kernel is not visible to a trace of operators."""
    parameters = sorted(references.make_parameters(ORDERS[order]), key=references.is_projected)
    tensors = references.torch_parameters(parameters, dtype_bytes, "meta")
    optimizer = references.galore(parameters, tensors, RANK)

    traced = traced_phases(optimizer, refresh_step=references.UPDATE_GAP)
    program = GaLoreAdamW(param_dtype_bytes=dtype_bytes, rank=RANK)

    phases = program_phases(program, parameters, without_labels=[DEVICE_SCRATCH])

    assert {phase: outputs_sorted(events) for phase, events in phases.items()} == {
        phase: outputs_sorted(events) for phase, events in traced.items()
    }


def recorded(name: str) -> dict[str, Any]:
    """Steps of released optimizers, as record_steps.py wrote them."""
    steps: dict[str, Any] = json.loads(Path(__file__).with_name(name).read_text())
    return steps


APOLLO = recorded("apollo_steps.json")
GALORE_8BIT = recorded("galore_8bit_steps.json")


def recorded_phases(case: dict[str, Any]) -> dict[StepPhase, list[Event]]:
    """The events of a recorded case by phase."""
    return {
        StepPhase(phase): [(kind, block, nbytes) for kind, block, nbytes in events]
        for phase, events in case["steps"].items()
    }


@pytest.mark.parametrize("case", APOLLO["cases"], ids=lambda c: f"{c['scale_type']} {c['dtype_bytes']}")
def test_apollo(case: dict[str, Any]) -> None:
    """The released optimizer's own steps, with the limiter acting."""
    parameters = references.make_parameters(APOLLO["parameters"])
    program = Apollo(
        param_dtype_bytes=case["dtype_bytes"],
        rank=case["rank"],
        scales_tensor=case["scale_type"] == "tensor",
    )

    assert program_phases(program, parameters, without_labels=[DEVICE_SCRATCH]) == recorded_phases(case)


@pytest.mark.parametrize("case", GALORE_8BIT["cases"], ids=lambda c: f"{c['parameter']} {c['dtype_bytes']}")
def test_8bit_galore(case: dict[str, Any]) -> None:
    """Sizes and order of one parameter's update.

    The blocks' numbers differ where the saved copy takes the place of the weights. The projected gradient stays in
    ``p.grad`` after the step, where it replaces the full one; the program frees it and leaves the full one to the loop.
    """
    (parameter,) = references.make_parameters([case["parameter"]])
    program = GaLoreAdamW8bit(param_dtype_bytes=case["dtype_bytes"], rank=case["rank"])
    unseen = (DEVICE_SCRATCH, "qmap1", "qmap2", UNORM_VECTOR, PARAMETER_NORM)

    phases = program_phases(program, [parameter], without_labels=unseen)

    for phase, traced in recorded_phases(case).items():
        sizes = [(kind, nbytes) for kind, _, nbytes in outputs_sorted(traced)]
        if references.is_projected(parameter):
            sizes.append(("free", traced_projected_gradient(case)))
        assert [(kind, nbytes) for kind, _, nbytes in outputs_sorted(phases[phase])] == sizes


def traced_projected_gradient(case: dict[str, Any]) -> int:
    """Bytes of the one block that stays after a steady step in place of an older one: the projected gradient.

    The saved copy stays as well, for the weights that were freed; it is the larger of the two.
    """
    events = recorded_phases(case)[StepPhase.steady]
    kept = {block: nbytes for kind, block, nbytes in events if kind == "alloc"}
    for kind, block, _ in events:
        if kind == "free":
            kept.pop(block, None)
    return min(kept.values())
