"""LOMO and AdaLomo: one parameter's update, as traced, frees the gradient it was given."""

from typing import Any

import pytest
import pytorch_optimizer
import torch

from tests.estimator.memory.optimizers import references
from tests.estimator.memory.optimizers.phases import Event, program_phases
from whatfits.estimator.memory.optimizers import StepPhase
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.lomo import AdaLomo, Lomo
from whatfits.profiler.trace.optimizer_step import StorageLog

CASES: dict[str, tuple[type[Lomo], Any]] = {
    "lomo": (Lomo, pytorch_optimizer.LOMO),
    "adalomo": (AdaLomo, pytorch_optimizer.AdaLOMO),
}


def traced_update(factory: Any, tensor: torch.nn.Parameter) -> list[Event]:
    """The update the optimizer's hook makes of a model with one parameter; -1 for blocks older than it."""
    model = torch.nn.Module()
    model.register_parameter("weight", tensor)
    gradient, tensor.grad = tensor.grad, None
    optimizer = factory(model, lr=1e-3)
    assert gradient is not None
    tensor.grad = gradient.clone()
    log = StorageLog("cpu", [tensor, tensor.grad])
    with log:
        optimizer.grad_func(0)
    log.close()
    assert tensor.grad is None
    return [(event.kind, max(event.block, -1), event.nbytes) for event in log.events]


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["wide", "tall", "one row", "vector", "vector of one"])
@pytest.mark.parametrize("case", CASES)
def test_an_update_equals_the_traced_one(case: str, name: str, dtype_bytes: int) -> None:
    build, factory = CASES[case]
    (parameter,) = references.make_parameters([name])
    (tensor,) = references.torch_parameters([parameter], dtype_bytes, "cpu")

    traced = traced_update(factory, tensor)
    phases = program_phases(
        build(param_dtype_bytes=dtype_bytes), [parameter], without_labels=[DEVICE_SCRATCH]
    )

    assert phases[StepPhase.steady] == traced


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["wide", "vector"])
def test_adalomo_keeps_fp32_means(name: str, dtype_bytes: int) -> None:
    """Outside `optimizer.state`: in dictionaries of the optimizer, by the parameter's name."""
    (parameter,) = references.make_parameters([name])
    (tensor,) = references.torch_parameters([parameter], dtype_bytes, "cpu")
    model = torch.nn.Module()
    model.register_parameter("weight", tensor)
    optimizer = pytorch_optimizer.AdaLOMO(model)
    kept = [
        *optimizer.exp_avg_sq.values(),
        *optimizer.exp_avg_sq_row.values(),
        *optimizer.exp_avg_sq_col.values(),
    ]

    states = AdaLomo(param_dtype_bytes=dtype_bytes).states(parameter)

    assert [state.nbytes for state in states] == [tensor.untyped_storage().nbytes() for tensor in kept]
