"""SGD and AdamW of `torch.optim`, as they run on CUDA.

Source: torch/optim/sgd.py, torch/optim/adam.py and torch/optim/adamw.py of PyTorch 2.13. Measured: the same steps traced
on the meta device allocate and free exactly these tensors.
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameter_lists import OneListProgram
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)

__all__ = ["AdamWForLoop", "AdamWForeach", "AdamWFused", "Sgd", "SgdMomentum", "adamw_states"]

STEP_BYTES = 4
"""`step` is one fp32 number (`_get_scalar_dtype`)."""

MOMENTUM_ACCESSES = 8
FUSED_MOMENTUM_ACCESSES = 5

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


def _adamw_with_cpu_step(parameter: ParameterTensor, dtype_bytes: int) -> tuple[StateTensor, ...]:
    step = StateTensor(name="step", nbytes=STEP_BYTES, on_device=False)
    return (step, *adamw_states(parameter, dtype_bytes))


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
class SgdMomentum(PerParameterProgram):
    """`torch.optim.SGD(momentum=...)` without weight decay: no temporaries, in every implementation.

        buffer <- momentum buffer + g (the first step: g), p <- p - lr buffer

    The first step clones each gradient (for loop, foreach) or makes an empty buffer (fused), in order of the
    parameters: the same allocations.
    """

    is_fused: bool = False

    @property
    def local_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The momentum in the parameter's dtype: e s bytes.

        Source: torch/optim/sgd.py, ``torch.clone(grad)``.
        Assumes: momentum not 0.
        """
        return (StateTensor(name="momentum_buffer", nbytes=parameter.numel * self.param_dtype_bytes),)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """In place; the first step makes the buffer."""
        if phase is StepPhase.first:
            (buffer,) = self.states(parameter)
            frame.state(parameter.name, buffer.name, buffer.nbytes)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of mul_ 2, add_ 3, add_ 3, or of one kernel that reads three tensors and writes two.

        bytes = 8 e s, fused 5 e s.

        Source: torch/optim/sgd.py, `_single_tensor_sgd`; aten/src/ATen/native/cuda/FusedSgdKernel.cu.
        Assumes: no weight decay, no Nesterov momentum; one kernel per operator, no reuse in cache.
        """
        accesses = FUSED_MOMENTUM_ACCESSES if self.is_fused else MOMENTUM_ACCESSES
        return StepWork(0, accesses * parameter.numel * self.param_dtype_bytes, 0, None)


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
        return _adamw_with_cpu_step(parameter, self.param_dtype_bytes)

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
class AdamWForeach(OneListProgram):
    """`torch.optim.AdamW(foreach=True)`, the default on CUDA: one list of square roots for all parameters.

    Source: torch/optim/adam.py, `_multi_tensor_adam`.
    """

    list_name: ClassVar[str] = "exp_avg_sq_sqrt"

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """``step`` on the CPU, two moments on the device."""
        return _adamw_with_cpu_step(parameter, self.param_dtype_bytes)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic as `AdamWForLoop.update_work`: the same operators."""
        return StepWork(0, EAGER_ADAMW_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)


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
