"""AdamW of bitsandbytes with states in managed memory, which the driver moves between GPU and host page by page.

Source: bitsandbytes 0.50.2, bitsandbytes/optim/optimizer.py, `get_state_buffer`; bitsandbytes/functional.py,
`get_paged`. Managed memory does not come from torch's caching allocator: it counts neither as allocated nor as
reserved. It occupies the device as long as there is room and leaves it under pressure, so that a run fits without it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from whatfits.estimator.memory.optimizers.blockwise_8bit import AdamW8bit, update_traffic
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)

__all__ = ["PagedAdamW", "PagedAdamW8bit"]

PAGED_FROM = 100_000
"""Tensors with fewer elements keep their states on the device."""

FP32_BYTES = 4
PAGED = ("state1", "state2")


def _page(states: Iterable[StateTensor], numel: int) -> tuple[StateTensor, ...]:
    """The states with the moments of large tensors off the device."""
    return tuple(
        replace(state, on_device=False, is_managed=True)
        if state.name in PAGED and numel >= PAGED_FROM
        else state
        for state in states
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAdamW(PerParameterProgram):
    """`bitsandbytes.optim.PagedAdamW`: 32-bit moments; one in-place kernel per parameter, no temporaries."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Two fp32 moments, 8 e bytes whatever the parameter's dtype; managed from 100,000 elements on.

        Source: bitsandbytes/optim/optimizer.py, `Optimizer2State.init_state`, `get_state_buffer`.
        Assumes: no `max_unorm`.
        """
        nbytes = parameter.numel * FP32_BYTES
        return _page((StateTensor(name=name, nbytes=nbytes) for name in PAGED), parameter.numel)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """In place; the first step makes the state."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                if state.on_device:
                    frame.state(parameter.name, state.name, state.nbytes)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one bitsandbytes kernel, as `update_traffic`; paging is not part of it.

        Source: csrc/kernels.cu, `kOptimizer32bit2State`.
        Assumes: one pass.
        """
        moved = update_traffic(parameter.numel, self.param_dtype_bytes, self.states(parameter))
        return StepWork(0, moved, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAdamW8bit(AdamW8bit):
    """`bitsandbytes.optim.PagedAdamW8bit`: 8-bit moments in managed memory, their maxima and maps on the device."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """As `AdamW8bit.states`, the moments managed from 100,000 elements on."""
        return _page(AdamW8bit.states(self, parameter), parameter.numel)
