"""GaLore, Fira and APOLLO as `whatfits.optim_impls` writes them: no tensor as large as the weights outside an SVD.

The allocations are those of its files projection.py, galore.py, fira.py and apollo.py, equal to traced steps
(tests/contract/test_optimizers.py). Papers: arXiv:2403.03507, arXiv:2410.01623, arXiv:2412.05270.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.linalg_scratch import record_svd
from whatfits.estimator.memory.optimizers.low_rank import LowRankProgram, Projection
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import FUSED_ADAMW_ACCESSES, adamw_states

__all__ = ["OwnApollo", "OwnFira", "OwnGaLore", "OwnLowRank", "record_svd_refresh"]

FP32_BYTES = 4
COUNT_BYTES = 4
"""Of the step number that the fused kernel takes as a tensor."""
LIMITER_NORM = "limiter_norm"
LOW_RANK_ACCESSES = 9
"""Of the projected gradient's size: written 1, zeros 1, the fused update 7."""
FACTOR_ACCESSES = 8


def record_svd_refresh(frame: Frame, shape: tuple[int, ...], param_dtype_bytes: int) -> None:
    """A thin SVD in fp32, of a copy where the gradient has less precision; its vectors are copied into P."""
    m, n = shape
    full, square = FP32_BYTES * m * n, FP32_BYTES * min(m, n) ** 2
    held = [] if param_dtype_bytes == FP32_BYTES else [frame.temporary(full, "fp32 gradient")]
    sizes = {"svd.U": full, "svd.Vh": square} if m >= n else {"svd.U": square, "svd.Vh": full}
    held += [frame.temporary(nbytes, label) for label, nbytes in sizes.items()]
    held.append(frame.temporary(FP32_BYTES * min(m, n), "svd.S"))
    record_svd(frame, m, n)
    frame.free(*held)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLowRank(LowRankProgram):
    """Base: AdamW's fused kernel, in the low-rank space for matrices."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update frees what it makes."""
        return ()

    @abstractmethod
    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """State of a projected matrix."""

    @abstractmethod
    def record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """Record the update of a projected matrix."""

    @abstractmethod
    def matrix_work(self, projection: Projection) -> StepWork:
        """Work of a projected matrix."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The method's of a projected matrix; elsewhere Adam's 2 e s.

        Source: low_rank.py of `whatfits.optim_impls`.
        Assumes: the step counter is a number.
        """
        projection = self.projection(parameter)
        if projection is None:
            return adamw_states(parameter, self.param_dtype_bytes)
        return self.matrix_states(projection)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Make the state in the first step; then the method's update, or one fused kernel."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)
        projection = self.projection(parameter)
        if projection is None:
            frame.free(frame.temporary(COUNT_BYTES, "step number"))
        else:
            self.record_matrix(frame, parameter, projection, phase)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """The method's work of a matrix; elsewhere 7 e s bytes of the fused kernel.

        Source: aten/src/ATen/native/cuda/FusedAdamWImpl.cu.
        Assumes: one pass over each tensor.
        """
        projection = self.projection(parameter)
        if projection is None:
            moved = FUSED_ADAMW_ACCESSES * parameter.numel * self.param_dtype_bytes
            return StepWork(0, moved, 0, None)
        return self.matrix_work(projection)

    def moments(self, projection: Projection) -> tuple[StateTensor, StateTensor]:
        """Two moments of the projected gradient: 2 r N s bytes."""
        nbytes = projection.low_rank * self.param_dtype_bytes
        return (StateTensor(name="exp_avg", nbytes=nbytes), StateTensor(name="exp_avg_sq", nbytes=nbytes))

    def p_state(self, projection: Projection) -> StateTensor:
        """P: r M s bytes."""
        return StateTensor(name="projection", nbytes=projection.matrix * self.param_dtype_bytes)

    def norm_state(self) -> StateTensor:
        """The norm that limits the next: s bytes."""
        return StateTensor(name=LIMITER_NORM, nbytes=self.param_dtype_bytes)

    def record_direction(self, frame: Frame, projection: Projection, projected: Block) -> list[Block]:
        """The direction in the low-rank space, written over zeros; with the projected gradient."""
        direction = frame.temporary(projection.low_rank * self.param_dtype_bytes, "direction")
        frame.free(frame.temporary(COUNT_BYTES, "step number"))
        return [direction, projected]

    def record_projected(self, frame: Frame, projection: Projection) -> Block:
        """The projected gradient."""
        return frame.temporary(projection.low_rank * self.param_dtype_bytes, "projected gradient")

    def record_channel_norms(self, frame: Frame, parameter: ParameterTensor, nbytes: int) -> Block:
        """Norms of the gradient along its longer side; over the rows of a wide one."""
        norms = frame.temporary(nbytes, "channel norms")
        if parameter.shape[0] < parameter.shape[1]:
            record_column_reduction(frame, parameter.shape)
        return norms

    def work(
        self, projection: Projection, *, full: int, products: int, small: int = 0, has_svd: bool = True
    ) -> StepWork:
        """Work from full-size accesses, products of the gradient's size, and accesses of channel factors."""
        elements = full * projection.full + LOW_RANK_ACCESSES * projection.low_rank
        elements += products * projection.matrix + small * projection.long_side
        svd_work = projection.full * projection.short_side if has_svd else 0
        moved = elements * self.param_dtype_bytes
        return StepWork(products * projection.product_flops, moved, svd_work, self.update_interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGaLore(OwnLowRank):
    """`whatfits.optim_impls.galore`: R = A P^T, U = Adam(R), p <- p - lr scale U P in one product."""

    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """P and two moments: (r M + 2 r N) s bytes.

        Source: arXiv:2403.03507 Table 1; galore.py.
        Assumes: P is a copy.
        """
        return (self.p_state(projection), *self.moments(projection))

    def record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """The refresh where due, the projected gradient, the direction."""
        if phase is not StepPhase.steady:
            record_svd_refresh(frame, parameter.shape, self.param_dtype_bytes)
        frame.free(*self.record_direction(frame, projection, self.record_projected(frame, projection)))

    def matrix_work(self, projection: Projection) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (3 m n + 9 r N + 2 r M): the gradient is read, the weights read and written.

        Source: galore.py.
        Assumes: no reuse in cache.
        """
        return self.work(projection, full=3, products=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFira(OwnLowRank):
    """`whatfits.optim_impls.fira`: GaLore's update and the scaled residual, whose norm comes from channel norms."""

    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """P, two moments and one norm: (r M + 2 r N + 1) s bytes.

        Source: arXiv:2410.01623 Table 1; fira.py.
        Assumes: P is a copy.
        """
        return (self.p_state(projection), *self.moments(projection), self.norm_state())

    def record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """GaLore's, then three fp32 norms per channel and the gradient's own."""
        if phase is not StepPhase.steady:
            self.record_refresh(frame, parameter, projection, phase)
        nbytes = FP32_BYTES * projection.long_side
        full = self.record_channel_norms(frame, parameter, nbytes)
        held = self.record_direction(frame, projection, self.record_projected(frame, projection))
        factors = frame.temporary(nbytes, "factors")
        frame.free(frame.temporary(nbytes, "projected norms"))
        frame.free(frame.temporary(projection.long_side * self.param_dtype_bytes, "cast factors"))
        frame.free(factors, *held, full)

    def record_refresh(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        projection: Projection,  # noqa: ARG002 (for methods that refresh otherwise)
        phase: StepPhase,  # noqa: ARG002 (the same)
    ) -> None:
        """A thin SVD."""
        record_svd_refresh(frame, parameter.shape, self.param_dtype_bytes)

    def matrix_work(self, projection: Projection) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (7 m n + 9 r N + 2 r M + 8 N): projection 1, norms 1, product 2, addition 3.

        Source: fira.py.
        Assumes: no reuse in cache.
        """
        return self.work(projection, full=7, products=2, small=FACTOR_ACCESSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnApollo(OwnLowRank):
    """`whatfits.optim_impls.apollo` with its default: P drawn from a seed in each step.

    A factor per channel of the longer side, or one per matrix (`scales_tensor`, APOLLO-Mini).
    """

    clips_rank: ClassVar[bool] = False

    scales_tensor: bool = False

    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """Two moments and one norm: (2 r N + 1) s bytes.

        Source: arXiv:2412.05270 Table 1; apollo.py.
        Assumes: P is not stored.
        """
        return (*self.moments(projection), self.norm_state())

    def record_matrix(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        projection: Projection,
        phase: StepPhase,  # noqa: ARG002 (every step draws P)
    ) -> None:
        """P and the projected gradient; the direction; norms; what scales the gradient."""
        p = frame.temporary(projection.matrix * self.param_dtype_bytes, "random matrix")
        projected = self.record_projected(frame, projection)
        frame.free(p)
        held = self.record_direction(frame, projection, projected)
        nbytes = self.param_dtype_bytes * (1 if self.scales_tensor else projection.long_side)
        factors = frame.temporary(nbytes, "factors")
        norms = frame.temporary(nbytes, "projected norms")
        if self.scales_tensor:
            record_full_reduction(frame, (projection.low_rank,))
        frame.free(norms, *held)
        if self.scales_tensor:
            norms = frame.temporary(nbytes, "gradient norm")
            record_full_reduction(frame, parameter.shape)
        else:
            norms = self.record_channel_norms(frame, parameter, FP32_BYTES * projection.long_side)
        frame.free(norms, factors)

    def matrix_work(self, projection: Projection) -> StepWork:
        """FLOPs = 2 m n r; bytes = s (5 m n + 9 r N + r M + 8 c): projection 1, norms 1, scaled addition 3.

        Source: apollo.py.
        Assumes: no reuse in cache; drawing P costs its writing.
        """
        small = 0 if self.scales_tensor else FACTOR_ACCESSES
        return self.work(projection, full=5, products=1, small=small, has_svd=False)
