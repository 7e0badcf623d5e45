"""GaLore with Adafactor as `whatfits.optim_impls` writes it: means in fp32, nothing of the gradient's size in fp32.

arXiv:2403.03507 and arXiv:1804.04235, Algorithm 4. The allocations are those of galore_adafactor.py, equal to traced
steps (tests/contract/test_optimizers.py).
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.low_rank import LowRankProgram, Projection
from whatfits.estimator.memory.optimizers.own_low_rank import record_svd_refresh
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["OwnGaLoreAdafactor"]

FP32_BYTES = 4
PIECE = 65_536
"""Elements of a matrix that are squared or, unprojected, updated at once."""
NORM_NUMBERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGaLoreAdafactor(LowRankProgram):
    """`whatfits.optim_impls.galore_adafactor`."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update frees what it makes."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """R M s + 4 (N + r) bytes of a projected matrix, 4 (m + n) of another, 4 e of a vector.

        Source: arXiv:1804.04235 Algorithm 4; galore_adafactor.py.
        Assumes: no first moment.
        """
        shape, own = parameter.shape, tuple[StateTensor, ...]()
        projection = self.projection(parameter)
        if projection is not None:
            shape = (projection.long_side, projection.rank)
            nbytes = projection.matrix * self.param_dtype_bytes
            own = (StateTensor(name="projection", nbytes=nbytes),)
        if len(shape) != 2:
            return (StateTensor(name="exp_avg_sq", nbytes=FP32_BYTES * parameter.numel),)
        names = ("exp_avg_sq_row", "exp_avg_sq_col")
        means = (StateTensor(name=n, nbytes=FP32_BYTES * size) for n, size in zip(names, shape, strict=True))
        return (*own, *means)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Make the state in the first step; then the update of the parameter's kind."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)
        projection = self.projection(parameter)
        if projection is not None:
            self._record_matrix(frame, parameter, projection, phase)
        elif len(parameter.shape) == 2:
            self._record_pieces(frame, parameter.shape)
        else:
            nbytes = FP32_BYTES * parameter.numel
            casts = [] if self._is_fp32 else [frame.temporary(nbytes, "fp32 gradient")]
            update = frame.temporary(nbytes, "update")
            self._record_norms(frame)
            frame.free(*casts, update)

    @property
    def _is_fp32(self) -> bool:
        return self.param_dtype_bytes == FP32_BYTES

    def _record_norms(self, frame: Frame) -> None:
        frame.free(*[frame.temporary(FP32_BYTES, "norm") for _ in range(NORM_NUMBERS)])

    def _record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        if phase is not StepPhase.steady:
            record_svd_refresh(frame, parameter.shape, self.param_dtype_bytes)
        size, numel = self.param_dtype_bytes, projection.low_rank
        projected = None if self._is_fp32 else frame.temporary(numel * size, "projected gradient")
        update = frame.temporary(FP32_BYTES * numel, "update")
        if projected is not None:
            frame.free(projected)
        self._record_pieces(frame, (projection.long_side, projection.rank))
        if not self._is_fp32:
            frame.free(frame.temporary(numel * size, "cast update"))
        frame.free(update)

    def _record_pieces(self, frame: Frame, shape: tuple[int, ...]) -> None:
        """Factors by sums of a piece's squares, whose column sums are too few for a CUDA kernel to need scratch."""
        rows, columns = shape
        at_once = min(rows, max(1, PIECE // columns))
        piece = frame.temporary(FP32_BYTES * at_once * columns, "piece")
        factors = [frame.temporary(FP32_BYTES * side, "factors") for side in shape]
        frame.free(frame.temporary(FP32_BYTES * columns, "column sums"))
        self._record_norms(frame)
        frame.free(piece, *factors)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (3 m n + 2 r M) + 28 r N of a projected matrix, 5 e s of another parameter.

        The gradient is read once and the weights read and written; a matrix that is not projected is read 3 times.

        Source: galore_adafactor.py.
        Assumes: no reuse in cache, except of a piece.
        """
        projection = self.projection(parameter)
        if projection is None:
            return StepWork(0, 5 * parameter.numel * self.param_dtype_bytes, 0, None)
        moved = (3 * projection.full + 2 * projection.matrix) * self.param_dtype_bytes
        moved += 7 * FP32_BYTES * projection.low_rank
        svd_work = projection.full * projection.short_side
        return StepWork(2 * projection.product_flops, moved, svd_work, self.update_interval)
