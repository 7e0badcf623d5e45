"""APOLLO: the raw gradient scaled by norms of AdamW's update in a random low-rank space.

Hanqing Zhu, Zhenyu Zhang, Wenyan Cong, Xi Liu, Sem Park, Vikas Chandra, Bo Long, David Z. Pan, Zhangyang Wang, Jinwon
Lee: APOLLO: SGD-like Memory, AdamW-level Performance, MLSys 2025, arXiv:2412.05270, Algorithm 1. The allocations are
those of the released optimizer (apollo-torch 1.0.3), found by tracing its step.

Differs from the paper: the paper stores a seed and draws P anew; the released code keeps P. A random P has as many
rows as the rank says, also above the matrix's shorter side.

Differs from pytorch-optimizer 4.1.0 (`pytorch_optimizer.APOLLO`, recorded on an H100, benchmarks/gpu_recordings), whose
states have the same bytes: that one updates unprojected parameters in two lists as large as all of them, scales the
projected gradient and projects it back. The recording shows that drawing P allocates nothing beside its result.
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.low_rank import (
    LOW_RANK_ADAM_ACCESSES,
    PARAMETER_UPDATE_ACCESSES,
    LowRankProgram,
    Projection,
)
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["Apollo"]

FP32_BYTES = 4
COMPARISON_BYTES = 1
LIMITER_NORM = "limiter_norm"
"""State: the norm of the last scaled gradient, which limits the growth of the next (arXiv:2410.01623)."""

FACTOR_ACCESSES = 8
FULL_RANK_ACCESSES = 1 + 2 + 1 + 2 + 2 + PARAMETER_UPDATE_ACCESSES
"""Full-size reads and writes: project 1, scale 2, norm 1, limit 2, multiply in place 2, add 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apollo(LowRankProgram):
    """APOLLO (`scales_tensor` False: a factor per channel) and APOLLO-Mini (True, with rank 1: one per tensor)."""

    clips_rank: ClassVar[bool] = False

    scales_tensor: bool = False

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of ``step()`` that hold temporaries."""
        return ("grad", "denom", "norm_grad", "factor", "scaled_grad", "scaled_grad_norm", "limiter")

    def num_factors(self, projection: Projection) -> int:
        """Scaling factors of one matrix: one per channel of the longer side, or one."""
        return 1 if self.scales_tensor else projection.long_side

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """P, two projected moments and one norm: (r M + 2 r N + 1) s; elsewhere Adam's 2 e s.

        Source: arXiv:2412.05270 Algorithm 1 and Table 1 (2 n r + 2, with a seed in place of P).
        Assumes: P is kept, the step counter and the seed are Python numbers.
        """
        projection = self.projection(parameter)
        if projection is None:
            return adamw_states(parameter, self.param_dtype_bytes)
        moment = projection.low_rank * self.param_dtype_bytes
        return (
            StateTensor(name="projection", nbytes=projection.matrix * self.param_dtype_bytes),
            StateTensor(name="exp_avg", nbytes=moment),
            StateTensor(name="exp_avg_sq", nbytes=moment),
            StateTensor(name=LIMITER_NORM, nbytes=self.param_dtype_bytes),
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Project, update the moments, derive the factors, scale the gradient, limit its growth, add."""
        frame.clear("grad")
        projection = self.projection(parameter)
        nbytes = parameter.numel * self.param_dtype_bytes
        if projection is not None:
            nbytes = projection.low_rank * self.param_dtype_bytes
            if phase is not StepPhase.steady:
                self._record_refresh(frame, parameter, projection, phase)
            frame.assign("grad", frame.temporary(nbytes, "projected gradient"))
        if phase is StepPhase.first:
            frame.state(parameter.name, "exp_avg", nbytes)
            frame.state(parameter.name, "exp_avg_sq", nbytes)
        self.record_adam(frame, nbytes)
        if projection is not None:
            self._record_factor(frame, projection)
            scaled = self._record_scaled_gradient(frame, parameter, projection, phase)
            frame.assign("norm_grad", scaled)

    def _record_refresh(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """P ~ N(0, 1) / sqrt(r), drawn in fp32 next to an fp32 copy of a lower-precision gradient."""
        is_fp32 = self.param_dtype_bytes == FP32_BYTES
        nbytes = projection.matrix * FP32_BYTES
        copies = [] if is_fp32 else [frame.temporary(projection.full * FP32_BYTES, "fp32 gradient")]
        drawn = frame.temporary(nbytes, "random matrix")
        if is_fp32:
            frame.state(parameter.name, "projection", nbytes)
            frame.free(drawn)
        else:
            scaled = frame.temporary(nbytes, "scaled random matrix")
            frame.free(drawn)
            frame.state(parameter.name, "projection", projection.matrix * self.param_dtype_bytes)
            frame.free(scaled, *copies)
        if phase is StepPhase.refresh:
            frame.drop_state(parameter.name, "projection", projection.matrix * self.param_dtype_bytes)

    def _record_factor(self, frame: Frame, projection: Projection) -> None:
        """``norm(update) / (norm(projected gradient) + eps)``, per channel or per tensor."""
        nbytes = self.param_dtype_bytes * self.num_factors(projection)
        update_norm = self._record_norm(frame, nbytes, projection, "update norm")
        gradient_norm = self._record_norm(frame, nbytes, projection, "gradient norm")
        denominator = frame.temporary(nbytes, "gradient norm + eps")
        frame.free(gradient_norm)
        factor = frame.temporary(nbytes, "scaling factor")
        frame.free(update_norm, denominator)
        frame.assign("factor", factor)

    def _record_norm(self, frame: Frame, nbytes: int, projection: Projection, label: str) -> Block:
        norm = frame.temporary(nbytes, label)
        if self.scales_tensor:
            record_full_reduction(frame, (projection.low_rank,))
        elif not projection.is_right:
            record_column_reduction(frame, (projection.rank, projection.long_side))
        return norm

    def _record_scaled_gradient(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> Block:
        """``p.grad * factor``, then the norm-growth limiter (which has no earlier norm in the first step)."""
        nbytes = projection.full * self.param_dtype_bytes
        scalar = self.param_dtype_bytes
        scaled = frame.temporary(nbytes, "scaled gradient")
        frame.assign("scaled_grad", scaled)
        if phase is StepPhase.first:
            frame.state(parameter.name, LIMITER_NORM, scalar)
            record_full_reduction(frame, parameter.shape)
            return scaled
        norm = frame.temporary(scalar, "scaled gradient norm")
        record_full_reduction(frame, parameter.shape)
        frame.assign("scaled_grad_norm", norm)
        self._record_limiter(frame)
        limited = frame.temporary(nbytes, "limited gradient")
        frame.assign("scaled_grad", limited)
        frame.replace_state(parameter.name, LIMITER_NORM, scalar)
        return limited

    def _record_limiter(self, frame: Frame) -> None:
        """``max(norm / (last_norm + eps), 1.01) / 1.01`` where the norm grew; a Python number otherwise."""
        scalar = self.param_dtype_bytes
        last_norm = frame.temporary(scalar, "last norm + eps")
        growth = frame.temporary(scalar, "norm growth")
        frame.free(last_norm)
        frame.free(frame.temporary(COMPARISON_BYTES, "comparison"))
        limiter = frame.temporary(scalar, "limiter")
        frame.free(growth)
        frame.assign("limiter", limiter)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 2 m n r; bytes = s (11 m n + 20 r N + r M + 8 c) for a projected matrix with c factors.

        One product projects the gradient; there is no back-projection and no SVD. A factor is written and read as
        two norms, their quotient and its operands: 8 accesses.

        Source: arXiv:2412.05270 Algorithm 1.
        Assumes: one kernel per operator, no weight decay, no reuse in cache; the refresh is a draw of r M numbers.
        """
        projection = self.projection(parameter)
        if projection is None:
            return StepWork(0, self.full_rank_traffic(parameter), 0, None)
        elements = (
            FULL_RANK_ACCESSES * projection.full
            + (LOW_RANK_ADAM_ACCESSES + 3) * projection.low_rank
            + projection.matrix
            + FACTOR_ACCESSES * self.num_factors(projection)
        )
        moved = elements * self.param_dtype_bytes
        return StepWork(projection.product_flops, moved, 0, self.update_interval)
