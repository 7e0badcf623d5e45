"""Fira: GaLore's low-rank update, plus what the projection drops of the gradient, scaled like it.

Xi Chen, Kaituo Feng, Changsheng Li, Xunhao Lai, Xiangyu Yue, Ye Yuan, Guoren Wang: Fira: Can We Achieve Full-rank
Training of LLMs Under Low-rank Constraint?, arXiv:2410.01623, Algorithm 1. Allocations are those of pytorch-optimizer
4.1.0 (pytorch_optimizer/optimizer/fira.py), equal to steps recorded on an H100 (benchmarks/gpu_recordings, `steps`).

Differs from the paper: alpha scales both terms there, the back-projection alone in code. Differs from the authors'
package (fira 1.0.2): that one loops over unprojected parameters too, computes without reusing buffers (about twice the
full-size temporaries of a projected matrix), and in fp32 keeps the whole M x M factor for P (`keeps_svd_factor`).
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.foreach_adam import record_unprojected
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.galore_projection import FP32_BYTES, PROJECTION, GaLoreProgram
from whatfits.estimator.memory.optimizers.low_rank import Projection
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states
from whatfits.estimator.memory.optimizers.whole_step import WholeStepProgram

__all__ = ["Fira"]

COMPARISON_BYTES = 1
LIMITER_NORM = "scaling_grad"
"""State: the norm of the last scaled residual, which limits the growth of the next."""

LOCAL_NAMES = ("grad", "de_nom", "norm_grad", "sub_grad", "scaling_factor", "scaling_grad", "norm", "limiter")
"""The slots of ``step()`` that hold temporaries."""

FULL_ACCESSES = 21
"""Full-size reads and writes: projection 1, two back-projections with scaling 6, sub 3, mul_ 2, norm 1, div_ 2, add_ 3,
p.add_ 3."""
LOW_RANK_ACCESSES = 20
"""Reads and writes of the projected gradient's size: written 1, lerp_ 3, mul_ 2, addcmul_ 3, sqrt 2, add_ 2, div 3, two
norms 2, read by two products 2."""
UNPROJECTED_ACCESSES = 18
"""lerp_ 3, mul_ 2, addcmul_ 3, sqrt 2, add_ 2, div 3, add_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fira(WholeStepProgram, GaLoreProgram):
    """R = P G, u = Adam(R), S = phi (G - P^T R) with phi = norm(u) / norm(R) per channel, p <- p - lr (P^T u + S)."""

    keeps_svd_factor: bool = False

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """P, two projected moments and one norm: (r M + 2 r N + 1) s; elsewhere Adam's 2 e s.

        Source: arXiv:2410.01623 Table 1 (2 n r + m r + 1); pytorch_optimizer/optimizer/fira.py.
        Assumes: the step counter is a Python number.
        """
        projection = self.projection(parameter)
        if projection is None:
            return adamw_states(parameter, self.param_dtype_bytes)
        moment = projection.low_rank * self.param_dtype_bytes
        return (
            StateTensor(name=PROJECTION, nbytes=self.projection_bytes(projection)),
            StateTensor(name="exp_avg", nbytes=moment),
            StateTensor(name="exp_avg_sq", nbytes=moment),
            StateTensor(name=LIMITER_NORM, nbytes=self.param_dtype_bytes),
        )

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """Lists of what is not projected, then a loop over the matrices."""
        others = [parameter for parameter in parameters if self.projection(parameter) is None]
        record_unprojected(frame, others, phase, self.param_dtype_bytes)
        for parameter in parameters:
            projection = self.projection(parameter)
            if projection is not None:
                self._record_matrix(frame, parameter, projection, phase)
        frame.leave(LOCAL_NAMES)

    def record_refresh(self, frame: Frame, parameter: ParameterTensor, projection: Projection) -> None:
        """The thin SVD in fp32, of an fp32 copy where the gradient has less precision, and a copy of the slice P."""
        cast = []
        if self.param_dtype_bytes != FP32_BYTES:
            cast.append(frame.temporary(projection.full * FP32_BYTES, "svd.gradient"))
        factors = self.record_svd_factors(frame, parameter, projection)
        frame.free(*cast)
        if not self._p_is_view:
            frame.state(parameter.name, PROJECTION, self.projection_bytes(projection))
            if not projection.is_right:  # the slice of U has a name of its own, after the factors'
                factors = [*factors[1:], factors[0]]
        frame.free(*factors)

    def _record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        frame.clear("grad")  # ``grad = p.grad``
        nbytes = projection.low_rank * self.param_dtype_bytes
        frame.assign("grad", self.record_project(frame, parameter, projection, phase))
        if phase is StepPhase.first:
            frame.state(parameter.name, "exp_avg", nbytes)
            frame.state(parameter.name, "exp_avg_sq", nbytes)
        update = frame.temporary(nbytes, "de_nom")
        frame.assign("de_nom", update)
        frame.assign("norm_grad", update)
        residual = frame.temporary(projection.full * self.param_dtype_bytes, "sub_grad")
        frame.assign("sub_grad", residual)
        self._record_factor(frame, projection)
        frame.assign("scaling_grad", residual)
        self._record_limiter(frame, parameter, phase)
        back = frame.temporary(projection.full * self.param_dtype_bytes, "back-projected update")
        frame.assign("norm_grad", back)

    def _record_factor(self, frame: Frame, projection: Projection) -> None:
        """``norm(update) / (norm(projected gradient) + eps)`` per channel of the longer side."""
        nbytes = projection.long_side * self.param_dtype_bytes
        update_norm = self._record_norm(frame, nbytes, projection)
        gradient_norm = self._record_norm(frame, nbytes, projection)
        denominator = frame.temporary(nbytes, "gradient norm + eps")
        frame.free(gradient_norm)
        factor = frame.temporary(nbytes, "scaling factor")
        frame.free(update_norm, denominator)
        frame.assign("scaling_factor", factor)

    def _record_norm(self, frame: Frame, nbytes: int, projection: Projection) -> Block:
        norm = frame.temporary(nbytes, "channel norms")
        if not projection.is_right:
            record_column_reduction(frame, (projection.rank, projection.long_side))
        return norm

    def _record_limiter(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """``max(norm / (last_norm + eps), 1.01) / 1.01`` where the norm grew; no earlier norm in the first step."""
        scalar = self.param_dtype_bytes
        if phase is StepPhase.first:
            frame.state(parameter.name, LIMITER_NORM, scalar)
            record_full_reduction(frame, parameter.shape)
            return
        norm = frame.temporary(scalar, "norm")
        record_full_reduction(frame, parameter.shape)
        frame.assign("norm", norm)
        last_norm = frame.temporary(scalar, "last norm + eps")
        growth = frame.temporary(scalar, "norm growth")
        frame.free(last_norm)
        frame.free(frame.temporary(COMPARISON_BYTES, "comparison"))
        limiter = frame.temporary(scalar, "limiter")
        frame.free(growth)
        frame.assign("limiter", limiter)
        frame.replace_state(parameter.name, LIMITER_NORM, scalar)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 6 m n r; bytes = s (21 m n + 20 r N + 3 r M) for a projected matrix, else 18 e s.

        Three products: project the gradient, project it back, project the update back.

        Source: arXiv:2410.01623 Algorithm 1; pytorch_optimizer/optimizer/fira.py.
        Assumes: one kernel per operator, no weight decay, no reuse in cache; norms per channel are too small to count.
        """
        projection = self.projection(parameter)
        if projection is None:
            moved = UNPROJECTED_ACCESSES * parameter.numel * self.param_dtype_bytes
            return StepWork(0, moved, 0, None)
        elements = (
            FULL_ACCESSES * projection.full + LOW_RANK_ACCESSES * projection.low_rank + 3 * projection.matrix
        )
        svd_work = projection.full * projection.short_side
        moved = elements * self.param_dtype_bytes
        return StepWork(3 * projection.product_flops, moved, svd_work, self.update_interval)
