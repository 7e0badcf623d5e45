"""Steps of the elementwise and factored methods: the programs' events equal the traced step's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch

from tests.estimator.memory.optimizers import references
from tests.estimator.memory.optimizers.phases import ORDERS, program_phases, traced_phases
from whatfits.estimator.memory.optimizers import OptimizerProgram, StepPhase
from whatfits.estimator.memory.optimizers.adafactor import Adafactor
from whatfits.estimator.memory.optimizers.adan import Adan
from whatfits.estimator.memory.optimizers.badam import BAdam
from whatfits.estimator.memory.optimizers.came import Came
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.lamb import Lamb
from whatfits.estimator.memory.optimizers.lion import Lion
from whatfits.estimator.memory.optimizers.schedule_free import ScheduleFreeAdamW
from whatfits.estimator.memory.optimizers.sophia import SophiaG
from whatfits.estimator.memory.optimizers.torch_optim import SgdMomentum

Case = tuple[Callable[[int], OptimizerProgram], Callable[[Any], torch.optim.Optimizer], str]
CASES: dict[str, Case] = {
    "sgdm for_loop": (
        lambda s: SgdMomentum(param_dtype_bytes=s),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, momentum=0.9, foreach=False),
        "meta",
    ),
    "sgdm foreach": (
        lambda s: SgdMomentum(param_dtype_bytes=s),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, momentum=0.9, foreach=True),
        "meta",
    ),
    "sgdm fused": (
        lambda s: SgdMomentum(param_dtype_bytes=s, is_fused=True),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3, momentum=0.9, fused=True),
        "cpu",
    ),
    "lion": (
        lambda s: Lion(param_dtype_bytes=s),
        lambda tensors: pytorch_optimizer.Lion(tensors, foreach=True),
        "meta",
    ),
    "adan": (
        lambda s: Adan(param_dtype_bytes=s),
        lambda tensors: pytorch_optimizer.Adan(tensors, foreach=True),
        "meta",
    ),
    "lamb": (
        lambda s: Lamb(param_dtype_bytes=s),
        lambda tensors: pytorch_optimizer.Lamb(tensors, foreach=True),
        "cpu",
    ),
    "schedule_free_adamw": (
        lambda s: ScheduleFreeAdamW(param_dtype_bytes=s),
        references.schedule_free,
        "meta",
    ),
    # Reads norms as Python numbers, so that it needs values.
    "adafactor": (lambda s: Adafactor(param_dtype_bytes=s), torch.optim.Adafactor, "cpu"),
    "came": (
        lambda s: Came(param_dtype_bytes=s),
        lambda tensors: pytorch_optimizer.CAME(tensors, foreach=True),
        "cpu",
    ),
}


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES)
def test_events_equal_the_traced_step(case: str, order: str, dtype_bytes: int) -> None:
    """What CUDA kernels allocate inside an operator is not in the trace."""
    build, reference, device = CASES[case]
    parameters = references.make_parameters(ORDERS[order])
    optimizer = reference(references.torch_parameters(parameters, dtype_bytes, device))

    traced = traced_phases(optimizer, refresh_step=2)

    assert program_phases(build(dtype_bytes), parameters, without_labels=[DEVICE_SCRATCH]) == traced


SOPHIA = json.loads(Path(__file__).with_name("sophia_steps.json").read_text())


@pytest.mark.parametrize("case", SOPHIA["cases"], ids=lambda case: f"{case['dtype_bytes']} bytes")
def test_sophia(case: dict[str, Any]) -> None:
    """The authors' own steps, as record_steps.py wrote them."""
    parameters = references.make_parameters(SOPHIA["parameters"])
    recorded = {
        StepPhase(phase): [(kind, block, nbytes) for kind, block, nbytes in events]
        for phase, events in case["steps"].items()
    }

    assert program_phases(SophiaG(param_dtype_bytes=case["dtype_bytes"]), parameters) == recorded


BADAM = json.loads(Path(__file__).with_name("badam_steps.json").read_text())


@pytest.mark.parametrize("case", BADAM["cases"], ids=lambda case: f"{case['dtype_bytes']} bytes")
def test_badam(case: dict[str, Any]) -> None:
    """badam's own steps of one block; its first copies are made by the constructor, its next moments by the next step."""
    parameters = references.make_parameters(BADAM["parameters"])
    recorded = {
        StepPhase(phase): [(kind, nbytes) for kind, _, nbytes in events]
        for phase, events in case["steps"].items()
    }
    program = BAdam(param_dtype_bytes=case["dtype_bytes"])
    made = 1 if case["dtype_bytes"] == 4 else 3
    outside = {StepPhase.first: (made * len(parameters), 0), StepPhase.refresh: (0, 2 * len(parameters))}

    for phase, events in recorded.items():
        before, after = outside.get(phase, (0, 0))
        sizes = [(event.kind, event.nbytes) for event in program.events(parameters, phase)]
        assert sizes[before : len(sizes) - after] == events
