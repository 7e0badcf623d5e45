"""What tests of the quantised optimizers share: programs as a step sees them, and quantisation by its definition."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.optim_impls.checks import SHAPES, build, make_params, set_grads
from whatfits.estimator.memory.optimizers import (
    OptimizerEvent,
    OptimizerProgram,
    ParameterTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.program import StateTensor
from whatfits.optim_impls.declare import Parameter, Phase
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.profiler.trace.optimizer_step import peak_of_step, trace_optimizer_step


class InStep:
    """A program without what a trace of one step on the CPU does not see.

    What all optimizers of a process share is made before their first step; kernels' workspaces are not torch tensors.
    """

    def __init__(self, program: OptimizerProgram) -> None:
        self._program = program

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        return self._program.states(parameter)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        del parameters
        return ()

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        events = self._program.events(parameters, phase)
        shared = [e.key for e in events if isinstance(e.key, tuple) and e.key[0] == "optimizer"]
        return [e for e in events if e.key not in shared and e.label != DEVICE_SCRATCH]

    def state_bytes(self, parameters: Sequence[ParameterTensor]) -> int:
        return self._program.state_bytes(parameters)

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        return self._program.transient_bytes(parameters, phase)

    def update_transient_bytes(self, parameter: ParameterTensor, phase: StepPhase) -> int:
        return self._program.update_transient_bytes(parameter, phase)

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        return self._program.flops_and_bytes(parameters)


def check_transients_are_within_the_declared(
    entry: OptimizerEntry,
    hyper: Mapping[str, Any],
    named_shape: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Steady and refresh steps of one parameter; `hyper` refreshes every second step, so that the third step does."""
    shape, role = SHAPES[named_shape]
    complete = {**entry.defaults, **hyper}
    param, _ = make_params([(shape, role)], dtype, device)[0]
    optimizer = build(entry, [(param, role)], hyper)
    declared = Parameter(shape, dtype, role)
    first = entry.declaration.transient_bytes(declared, complete, Phase.FIRST)
    held = sum(state.nbytes for state in entry.declaration.states(declared, complete))
    for step, phase in enumerate((Phase.FIRST, Phase.STEADY, Phase.REFRESH)):
        set_grads([param], step)
        traced = peak_of_step(trace_optimizer_step(optimizer))
        if phase is Phase.FIRST:
            assert traced <= first + held
        else:
            assert traced <= entry.declaration.transient_bytes(declared, complete, phase)


def dynamic_map(*, is_signed: bool) -> Tensor:
    """The dynamic map in float64, from its definition in arXiv:1511.04561 section 2.1: powers of ten, each with a
    linear fraction of as many bits as its exponent leaves."""
    magnitudes = [0.0, 1.0]
    for exponent in range(7):
        parts = 2 ** (exponent + (0 if is_signed else 1))
        width = 0.9 / parts
        magnitudes += [10.0 ** (exponent - 6) * (0.1 + width * (i + 0.5)) for i in range(parts)]
    values = magnitudes + ([-v for v in magnitudes if v not in {0.0, 1.0}] if is_signed else [])
    return torch.tensor(sorted(values), dtype=torch.float64)


def round_trip(x: Tensor, *, is_signed: bool, block_size: int = 256) -> Tensor:
    """Quantise and dequantise by the definition, in float64: the nearest value of the map, times the block's maximum."""
    values = dynamic_map(is_signed=is_signed).to(x.device)
    blocks = []
    for block in torch.split(x.double().reshape(-1), block_size):
        largest = block.abs().max()
        if largest == 0:
            blocks.append(block)
            continue
        nearest = (block[:, None] / largest - values).abs().argmin(1)
        blocks.append(values[nearest] * largest)
    return torch.cat(blocks).view(x.shape)
