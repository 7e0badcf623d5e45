"""GaLore with Adafactor: row and column means of the projected gradient's square, everything in fp32.

Jiawei Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507, Figure 3;
Noam Shazeer, Mitchell Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235,
Algorithm 4. Allocations are those of galore-torch 1.0 (jiaweizzhao/GaLore, commit 2cc66f8, adafactor.py), equal to
steps recorded on an H100 (benchmarks/gpu_recordings, `steps`).

Differs from the paper: that code computes in fp32 whatever the parameters' dtype, so that P is a slice that holds the
whole M x M factor of the SVD in bf16 runs too.
"""

from dataclasses import dataclass
from math import prod

from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.galore_projection import PROJECTION, GaLoreProgram
from whatfits.estimator.memory.optimizers.low_rank import Projection
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["GaLoreAdafactor"]

FP32_BYTES = 4
RMS = "RMS"
"""State: the parameter's root mean square, one number."""

FACTORED_ACCESSES = 15
"""Reads and writes in the update's size: square 2, + eps 2, two means 2, outer product 1, mul_ 3, norm 1, div_ 2,
mul_ 2."""
VECTOR_ACCESSES = 19
"""The same with a second moment: square 2, + eps 2, mul_ 2, add_ 3, rsqrt 2, mul_ 3, norm 1, div_ 2, mul_ 2."""
WHOLE_ACCESSES = 6
"""Reads and writes in the parameter's size: its norm 1, the negation 2, the addition 3."""
PROJECTION_ACCESSES = 4
"""More of them where projected: the gradient's reading 1, the back-projection's writing 1 and scaling 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreAdafactor(GaLoreProgram):
    """`galore_torch.GaLoreAdafactor` with `scale_parameter` and `relative_step` off, as its documentation asks.

    R = P G, V = r c / mean(r) with row and column means r, c of R^2, U = R / sqrt(V), U / max(1, rms(U)),
    p <- p - lr scale P^T U.
    """

    @property
    def gradient_dtype_bytes(self) -> int:
        """fp32: a lower-precision gradient is cast before it is projected."""
        return FP32_BYTES

    @property
    def _casts(self) -> bool:
        return self.param_dtype_bytes != FP32_BYTES

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of ``step()`` that hold temporaries."""
        return ("grad", "p_data_fp32", "update")

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """fp32 row and column means: 4 (rows + columns) bytes, of the projected gradient with P's 4 M M; one RMS.

        A vector has a second moment of 4 e bytes.

        Source: galore_torch/adafactor.py, ``step``; galore_torch/galore_projector.py.
        Assumes: no first moment (`beta1` None, the default).
        """
        projection = self.projection(parameter)
        rms = StateTensor(name=RMS, nbytes=FP32_BYTES)
        means = self._mean_states(parameter, projection)
        if projection is None:
            return (*means, rms)
        p = StateTensor(name=PROJECTION, nbytes=self.projection_bytes(projection))
        return (p, *means, rms)

    def _mean_states(
        self, parameter: ParameterTensor, projection: Projection | None
    ) -> tuple[StateTensor, ...]:
        shape = self._update_shape(parameter, projection)
        if len(shape) == 1:
            return (StateTensor(name="exp_avg_sq", nbytes=shape[0] * FP32_BYTES),)
        rows, columns = shape
        return (
            StateTensor(name="exp_avg_sq_row", nbytes=rows * FP32_BYTES),
            StateTensor(name="exp_avg_sq_col", nbytes=columns * FP32_BYTES),
        )

    def _update_shape(self, parameter: ParameterTensor, projection: Projection | None) -> tuple[int, ...]:
        if projection is None:
            return parameter.shape
        shape = (projection.long_side, projection.rank)
        return shape if projection.is_right else shape[::-1]

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Cast, project, derive the update from the means, project it back, subtract."""
        projection = self.projection(parameter)
        frame.clear("grad")  # ``grad = p.grad``
        if self._casts:
            frame.assign("grad", frame.temporary(parameter.numel * FP32_BYTES, "fp32 gradient"))
        if projection is not None:
            frame.assign("grad", self.record_project(frame, parameter, projection, phase))
        if phase is StepPhase.first:
            for state in self._mean_states(parameter, projection):
                frame.state(parameter.name, state.name, state.nbytes)
        frame.clear("p_data_fp32")
        if self._casts:
            frame.assign("p_data_fp32", frame.temporary(parameter.numel * FP32_BYTES, "fp32 parameter"))
        self._record_rms(frame, parameter, phase)
        self._record_update(frame, self._update_shape(parameter, projection))
        if projection is not None:
            frame.assign("update", self.record_project_back(frame, projection))
        frame.free(frame.temporary(parameter.numel * FP32_BYTES, "-update"))

    def _record_rms(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """``tensor.norm(2) / (tensor.numel() ** 0.5)`` becomes state."""
        norm = frame.temporary(FP32_BYTES, "norm")
        record_full_reduction(frame, parameter.shape)
        frame.state(parameter.name, RMS, FP32_BYTES)
        frame.free(norm)
        if phase is not StepPhase.first:
            frame.drop_state(parameter.name, RMS, FP32_BYTES)

    def _record_update(self, frame: Frame, shape: tuple[int, ...]) -> None:
        """``(grad**2) + eps``, its means, their outer product (or the second moment's root), clipped by its RMS."""
        nbytes = prod(shape) * FP32_BYTES
        square = frame.temporary(nbytes, "squared gradient")
        shifted = frame.temporary(nbytes, "squared gradient + eps")
        frame.free(square)
        frame.assign("update", shifted)
        if len(shape) == 2:
            self._record_means(frame, shape)
            frame.assign("update", self._record_outer_product(frame, shape))
        else:
            frame.assign("update", frame.temporary(nbytes, "exp_avg_sq.rsqrt"))
        norm = frame.temporary(FP32_BYTES, "norm")
        record_full_reduction(frame, shape)
        rms = frame.temporary(FP32_BYTES, "rms")
        frame.free(norm)
        ratio = frame.temporary(FP32_BYTES, "rms / clip_threshold")
        frame.free(rms, ratio)

    def _record_means(self, frame: Frame, shape: tuple[int, ...]) -> None:
        """``update.mean(dim=-1)`` and ``update.mean(dim=-2)``."""
        rows, columns = shape
        frame.free(frame.temporary(rows * FP32_BYTES, "row means"))
        column_means = frame.temporary(columns * FP32_BYTES, "column means")
        record_column_reduction(frame, shape)
        frame.free(column_means)

    def _record_outer_product(self, frame: Frame, shape: tuple[int, ...]) -> Block:
        """`_approx_sq_grad`: ``(row / row.mean()).rsqrt_() * column.rsqrt()``."""
        rows, columns = shape
        mean = frame.temporary(FP32_BYTES, "mean of rows")
        record_full_reduction(frame, (rows,))
        row_factor = frame.temporary(rows * FP32_BYTES, "row factor")
        frame.free(mean)
        column_factor = frame.temporary(columns * FP32_BYTES, "column factor")
        product = frame.temporary(rows * columns * FP32_BYTES, "update")
        frame.free(row_factor, column_factor)
        return product

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 4 m n r; bytes = 4 (10 e + 17 r N + 2 r M) where projected, else 84 e (vectors 100 e), plus casts.

        The products write and read r N elements once each beside the 15 accesses of the update. Below fp32, gradient,
        parameter and result are cast: 3 (4 + s) e.

        Source: galore_torch/adafactor.py.
        Assumes: one kernel per operator; no weight decay; no reuse in cache; means are too small to count.
        """
        projection = self.projection(parameter)
        casts = 3 * (FP32_BYTES + self.param_dtype_bytes) * parameter.numel if self._casts else 0
        if projection is None:
            accesses = VECTOR_ACCESSES if len(parameter.shape) == 1 else FACTORED_ACCESSES
            moved = (WHOLE_ACCESSES + accesses) * parameter.numel * FP32_BYTES
            return StepWork(0, moved + casts, 0, None)
        elements = (
            (WHOLE_ACCESSES + PROJECTION_ACCESSES) * projection.full
            + (FACTORED_ACCESSES + 2) * projection.low_rank
            + 2 * projection.matrix
        )
        svd_work = projection.full * projection.short_side
        moved = elements * FP32_BYTES + casts
        return StepWork(2 * projection.product_flops, moved, svd_work, self.update_interval)
