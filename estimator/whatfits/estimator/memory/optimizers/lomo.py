"""LOMO and AdaLomo: the update is fused into the backward pass, gradient by gradient.

Kai Lv et al.: Full Parameter Fine-tuning for Large Language Models with Limited Resources, arXiv:2306.09782, Algorithm 1;
Kai Lv et al.: AdaLomo: Low-memory Optimization with Adaptive Learning Rate, arXiv:2310.10195, Algorithm 1. Allocations
are those of pytorch-optimizer 4.1.0 (`pytorch_optimizer.LOMO`, `AdaLOMO`).

Both compute in fp32 and free the gradient as soon as its fp32 copy is there.
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import (
    DEVICE_SCRATCH,
    record_column_reduction,
    record_full_reduction,
)
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["AdaLomo", "Lomo"]

FP32_BYTES = 4
BOOL_BYTES = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lomo(PerParameterProgram):
    """p <- p - lr g, in fp32, as soon as g is there and found finite; no state."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update is a call of its own."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:  # noqa: ARG002 (nothing to say)
        """None."""
        return ()

    def update(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        phase: StepPhase,  # noqa: ARG002 (every step is alike)
    ) -> None:
        """Check for overflow, copy the gradient to fp32, free it, update a copy of the parameter and write it back."""
        self._record_overflow_check(frame, parameter)
        gradient = self.record_gradient(frame, parameter)
        weights = self.record_weights(frame, parameter)
        self.drop_copies(frame, parameter, gradient, weights)

    def _record_overflow_check(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``torch.logical_or(torch.isnan(grad), torch.isinf(grad)).any()``; isinf takes absolute values first."""
        numel = parameter.numel
        is_nan = frame.temporary(numel * BOOL_BYTES, "isnan")
        magnitude = frame.temporary(numel * self.param_dtype_bytes, DEVICE_SCRATCH)
        is_inf = frame.temporary(numel * BOOL_BYTES, "isinf")
        frame.free(magnitude)
        either = frame.temporary(numel * BOOL_BYTES, "isnan or isinf")
        frame.free(is_nan, is_inf)
        any_of_them = frame.temporary(BOOL_BYTES, "any")
        record_full_reduction(frame, parameter.shape, BOOL_BYTES)
        frame.free(either, any_of_them)

    def record_gradient(self, frame: Frame, parameter: ParameterTensor) -> Block | None:
        """The gradient's fp32 copy; an fp32 gradient is not copied and stays until the update's end."""
        if self.param_dtype_bytes == FP32_BYTES:
            return None
        copy = frame.temporary(parameter.numel * FP32_BYTES, "fp32 gradient")
        frame.drop_gradient(parameter.name, parameter.numel * self.param_dtype_bytes)
        return copy

    def record_weights(self, frame: Frame, parameter: ParameterTensor) -> Block | None:
        """The parameter's fp32 copy, unless it is fp32."""
        if self.param_dtype_bytes == FP32_BYTES:
            return None
        return frame.temporary(parameter.numel * FP32_BYTES, "fp32 weights")

    def drop_copies(self, frame: Frame, parameter: ParameterTensor, *copies: Block | None) -> None:
        """Free the copies, or the fp32 gradient in place of its own."""
        if self.param_dtype_bytes == FP32_BYTES:
            frame.drop_gradient(parameter.name, parameter.numel * FP32_BYTES)
        frame.free(*(copy for copy in copies if copy is not None))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = e (4 s + 6) for the overflow check: isnan s + 1, abs 2 s, isinf s + 1, or 3, any 1; then
        e (3 s + 24) for two copies to fp32, 2 s + 8, add_ 12, and the copy back, s + 4; an fp32 update is add_ alone.

        Source: pytorch_optimizer/optimizer/lomo.py, `fuse_update`; optimizer/utils/precision.py, `has_overflow`.
        Assumes: no clipping; no reuse in cache.
        """
        s = self.param_dtype_bytes
        update = 12 if s == FP32_BYTES else 3 * s + 24
        return StepWork(0, parameter.numel * (4 * s + 6 + update), 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaLomo(Lomo):
    """LOMO with Adafactor's factored second moment: u = g / sqrt(r c / mean(r)), scaled by the parameter's RMS.

    Its hook runs when the next parameter's gradient is there, which lives beside the update and is not counted.
    """

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Row and column means of a matrix, 4 (m + n) bytes, the second moment of a vector, 4 e: always fp32.

        Source: arXiv:2310.10195, Algorithm 1; pytorch_optimizer/optimizer/lomo.py, `initialize_states`.
        Assumes: no ZeRO-3 partition.
        """
        if len(parameter.shape) == 1:
            return (StateTensor(name="exp_avg_sq", nbytes=parameter.numel * FP32_BYTES),)
        rows, columns = parameter.shape
        return (
            StateTensor(name="exp_avg_sq_row", nbytes=rows * FP32_BYTES),
            StateTensor(name="exp_avg_sq_col", nbytes=columns * FP32_BYTES),
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """The fp32 gradient, the update, and the fp32 weights are alive together."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)
        gradient = self.record_gradient(frame, parameter)
        update = frame.temporary(parameter.numel * FP32_BYTES, "update")
        if len(parameter.shape) == 1:
            inverse_root = frame.temporary(parameter.numel * FP32_BYTES, "rsqrt")
            frame.free(update)
            update = inverse_root
        else:
            self._record_factors(frame, parameter)
        factor = frame.temporary(FP32_BYTES, "rms of update")
        record_full_reduction(frame, parameter.shape)
        weights = self.record_weights(frame, parameter)
        norm = frame.temporary(FP32_BYTES, "norm of weights")
        record_full_reduction(frame, parameter.shape)
        rms = frame.temporary(FP32_BYTES, "rms of weights")
        frame.free(norm)
        self.drop_copies(frame, parameter, gradient, update, factor, weights, rms)

    def _record_factors(self, frame: Frame, parameter: ParameterTensor) -> None:
        """Means over columns and rows, then r / mean(r) and rsqrt(c), whose product is written into the update."""
        rows, columns = parameter.shape
        frame.free(frame.temporary(rows * FP32_BYTES, "row means"))
        means = frame.temporary(columns * FP32_BYTES, "column means")
        record_column_reduction(frame, parameter.shape)
        frame.free(means)
        mean = frame.temporary(FP32_BYTES, "mean of row means")
        record_full_reduction(frame, (rows,))
        row_factor = frame.temporary(rows * FP32_BYTES, "row factor")
        frame.free(mean)
        column_factor = frame.temporary(columns * FP32_BYTES, "column factor")
        frame.free(row_factor, column_factor)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator, in fp32.

        bytes = e (3 s + 96): copies 2 s + 8, div_ 8, square 8, add_ 8, means 8, product 4, mul_ 12, norm 4, div_ 8,
        norm 4, mul_ 8, sub_ 12, copy back s + 4; 84 e for fp32, which is not copied.

        Source: pytorch_optimizer/optimizer/lomo.py, `AdaLOMO.fuse_update`.
        Assumes: loss scaling (the library's default), no clipping; means are too small to count; no reuse in cache.
        """
        s = self.param_dtype_bytes
        accesses = 84 if s == FP32_BYTES else 3 * s + 96
        return StepWork(0, parameter.numel * accesses, 0, None)
