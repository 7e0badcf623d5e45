"""BAdam: AdamW on one transformer layer at a time, in fp32, while everything else is frozen.

Qijun Luo, Hengxu Yu, Xiao Li: BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models,
arXiv:2404.02827, Algorithm 1. Allocations are those of badam 1.4 (`BlockOptimizer.step_single_gpu` around AdamW with
foreach), found by tracing its step.

A program is asked about the active block's parameters alone; embeddings and head never train by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.parameter_lists import ListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["MASTER", "BAdam"]

FP32_BYTES = 4
STEP_BYTES = 4
MASTER = "master"
"""State: the fp32 copy of an active parameter."""
MOMENTS = ("exp_avg", "exp_avg_sq")
ADAMW_BYTES = 80
"""An element's traffic of AdamW in fp32: 20 reads and writes, see `torch_optim`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BAdam(ListProgram):
    """AdamW on fp32 copies of the active block; a refresh is the step after which the next block takes its turn."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """fp32 copy and two fp32 moments of an active parameter, 12 e bytes, and ``step`` on the CPU.

        Source: arXiv:2404.02827 section 2.2 (2 M + 16 M / D with its gradient); badam/block_optim.py,
            `switch_trainable_params`, `_update_active_block`.
        Assumes: blocks of one layer each, the library's default; Adam's states go when the block changes.
        """
        nbytes = parameter.numel * FP32_BYTES
        step = StateTensor(name="step", nbytes=STEP_BYTES, on_device=False)
        return (step, *(StateTensor(name=name, nbytes=nbytes) for name in (MASTER, *MOMENTS)))

    def begin(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """The constructor copies the first block to fp32."""
        if phase is StepPhase.first:
            for parameter in parameters:
                self._record_master(frame, parameter)

    def record_lists(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """fp32 gradients in place of the others, AdamW, copies back; then perhaps the next block."""
        gradients = [self._record_gradient(frame, parameter) for parameter in parameters]
        if phase is StepPhase.first:
            self._record_moments(frame, parameters)
        roots = [frame.temporary(p.numel * FP32_BYTES, "exp_avg_sq_sqrt") for p in parameters]
        frame.free(*reversed(roots))
        if not self._is_fp32:
            for parameter in parameters:
                frame.free(frame.temporary(parameter.numel * self.param_dtype_bytes, "copy back"))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                frame.drop_gradient(parameter.name, parameter.numel * FP32_BYTES)
            else:
                frame.free(gradient)
        if phase is StepPhase.refresh:
            self._record_switch(frame, parameters)

    @property
    def _is_fp32(self) -> bool:
        return self.param_dtype_bytes == FP32_BYTES

    def _record_gradient(self, frame: Frame, parameter: ParameterTensor) -> Block | None:
        """``lp_param.grad.float()``; an fp32 gradient is handed on as it is."""
        if self._is_fp32:
            return None
        copy = frame.temporary(parameter.numel * FP32_BYTES, "fp32 gradient")
        frame.drop_gradient(parameter.name, parameter.numel * self.param_dtype_bytes)
        return copy

    def _record_master(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``lp_param.clone().detach().float()``."""
        nbytes = parameter.numel * FP32_BYTES
        if self._is_fp32:
            frame.state(parameter.name, MASTER, nbytes)
            return
        clone = frame.temporary(parameter.numel * self.param_dtype_bytes, "clone")
        frame.state(parameter.name, MASTER, nbytes)
        frame.free(clone)

    def _record_moments(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        for parameter in parameters:
            for name in MOMENTS:
                frame.state(parameter.name, name, parameter.numel * FP32_BYTES)

    def _record_switch(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        """The next block's copies, then the old block's states go; the moments of the next step are put here."""
        for parameter in parameters:
            self._record_master(frame, parameter)
        for parameter in parameters:
            for name in (MASTER, *MOMENTS):
                frame.drop_state(parameter.name, name, parameter.numel * FP32_BYTES)
        self._record_moments(frame, parameters)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator, of an active parameter.

        bytes = e (4 s + 88): gradient to fp32 s + 4, AdamW 80, back to the parameter's dtype s + 4 and copied 2 s; an
        fp32 parameter is copied only, 88 e.

        Source: badam/block_optim.py, `step_single_gpu`; torch/optim/adam.py.
        Assumes: no reuse in cache.
        """
        copies = 2 * FP32_BYTES if self._is_fp32 else 4 * self.param_dtype_bytes + 2 * FP32_BYTES
        return StepWork(0, parameter.numel * (ADAMW_BYTES + copies), 0, None)
