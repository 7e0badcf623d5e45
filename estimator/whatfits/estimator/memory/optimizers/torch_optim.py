"""SGD and AdamW of `torch.optim`, as they run on CUDA.

Source: torch/optim/sgd.py, torch/optim/adam.py and torch/optim/adamw.py of PyTorch 2.13. Measured: the same steps traced
on the meta device allocate and free exactly these tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    OptimizerEvent,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.units import round_allocation

__all__ = ["AdamWForLoop", "AdamWForeach", "AdamWFused", "Sgd", "adamw_states"]

STEP_BYTES = 4
"""`step` is one fp32 number (`_get_scalar_dtype`)."""

EAGER_ADAMW_ACCESSES = 20
"""Tensor reads and writes of AdamW as separate kernels: mul_ 2 (decay), lerp_ 3, mul_ 2, addcmul_ 3, sqrt 2, div 2,
add_ 2, addcdiv_ 4."""

FUSED_ADAMW_ACCESSES = 7
"""Reads of parameter, gradient and both moments, writes of parameter and both moments."""


def adamw_states(parameter: ParameterTensor, dtype_bytes: int) -> tuple[StateTensor, StateTensor]:
    """First and second moment of Adam in the parameter's dtype.

    bytes = e s each, with e elements of s bytes.

    Source: torch/optim/adam.py, `_init_group`: ``torch.zeros_like(p)``.
    Assumes: no amsgrad.
    """
    nbytes = parameter.numel * dtype_bytes
    return (StateTensor(name="exp_avg", nbytes=nbytes), StateTensor(name="exp_avg_sq", nbytes=nbytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(PerParameterProgram):
    """`torch.optim.SGD` without momentum and weight decay: no state, no temporaries, in every implementation."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:  # noqa: ARG002 (nothing to say)
        """None."""
        return ()

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """``param.add_(grad, alpha=-lr)``."""

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one addition in place.

        bytes = 3 e s: read parameter and gradient, write parameter.

        Source: torch/optim/sgd.py.
        Assumes: no momentum, no weight decay.
        """
        return StepWork(0, 3 * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWForLoop(PerParameterProgram):
    """`torch.optim.AdamW(foreach=False, fused=False)`; `step` is a CPU scalar."""

    creates_all_states_first: ClassVar[bool] = True

    @property
    def local_names(self) -> tuple[str, ...]:
        """``denom`` outlives its iteration."""
        return ("denom",)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """``step`` on the CPU, two moments on the device."""
        step = StateTensor(name="step", nbytes=STEP_BYTES, on_device=False)
        return (step, *adamw_states(parameter, self.param_dtype_bytes))

    def update(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        phase: StepPhase,  # noqa: ARG002 (every step is alike)
    ) -> None:
        """``denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)``."""
        nbytes = parameter.numel * self.param_dtype_bytes
        square_root = frame.temporary(nbytes, "exp_avg_sq.sqrt")
        quotient = frame.temporary(nbytes, "denom")
        frame.free(square_root)
        frame.assign("denom", quotient)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 20 e s.

        Source: torch/optim/adam.py, `_single_tensor_adam`, one kernel per operator.
        Assumes: weight decay not 0 (torch's default is 0.01); no reuse in cache.
        """
        return StepWork(0, EAGER_ADAMW_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWForeach(AdamWForLoop):
    """`torch.optim.AdamW(foreach=True)`, the default on CUDA: one list of square roots for all parameters."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: the list is freed by `_multi_tensor_adam`."""
        return ()

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        """``exp_avg_sq_sqrt = torch._foreach_sqrt(...)``; a list frees its last element first."""
        frame = Frame()
        self.begin(frame, parameters, phase)
        roots = [frame.temporary(p.numel * self.param_dtype_bytes, "exp_avg_sq_sqrt") for p in parameters]
        frame.free(*reversed(roots))
        return frame.events

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step: one more copy of all parameters, and in the first step the state.

        peak = sum over parameters of round512(e s), + sum of round512(state) in the first step.

        Source: torch/optim/adam.py, `_multi_tensor_adam`.
        Assumes: all parameters of one dtype on one device, which torch groups together.
        """
        parameters = Parameters.of(parameters)
        roots = sum(
            kind.occurrences * round_allocation(kind.example.numel * self.param_dtype_bytes)
            for kind in parameters.kinds
        )
        return roots + (self.state_bytes(parameters) if phase is StepPhase.first else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWFused(AdamWForLoop):
    """`torch.optim.AdamW(fused=True)`: one in-place kernel; `step` lives on the device."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """``step`` and two moments, all on the device."""
        return (StateTensor(name="step", nbytes=STEP_BYTES), *adamw_states(parameter, self.param_dtype_bytes))

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """In place."""

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of the fused kernel.

        bytes = 7 e s.

        Source: aten/src/ATen/native/cuda/FusedAdamWImpl.cu.
        Assumes: one pass over each tensor.
        """
        return StepWork(0, FUSED_ADAMW_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
