"""Q-GaLore, Q-APOLLO and Q-APOLLO-Mini as `whatfits.optim_impls` steps them.

Zhenyu Zhang et al.: Q-GaLore, arXiv:2407.08296; Hanqing Zhu et al.: APOLLO, arXiv:2412.05270. Rules of
optim_impls/whatfits/optim_impls/q_galore.py and q_apollo.py; the contract test holds both to the bytes of real steps.

Assumes weights in the parameters' dtype. Where `quantize_linears` made them integers, weights take e + 5 ceil(e / 128)
bytes, and an update holds two fp32 pieces of about 2^18 elements beside these.
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.blockwise_8bit import is_quantised
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.low_rank import Projection
from whatfits.estimator.memory.optimizers.own_quantised import (
    ADAM,
    CHUNK_SIZE,
    FP32_BYTES,
    OwnGaLore8bit,
    own_blockwise_states,
    record_chunk_workspace,
)
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["OwnQApollo", "OwnQGaLore"]

PROJECTION_GROUP = 256
"""Elements of P that share a scale (`q_galore.PROJECTION_GROUP`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnQGaLore(OwnGaLore8bit):
    """P in 4 bits, unpacked for each step."""

    def projection_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """Two codes a byte, an fp32 scale and a zero point per 256: ceil(r M / 2) + 5 ceil(r M / 256) bytes.

        Source: arXiv:2407.08296 section 3.3; q_galore.py, `projection_tensors`.
        Assumes: groups of 256.
        """
        groups = -(-projection.matrix // PROJECTION_GROUP)
        return (
            StateTensor(name="projection", nbytes=-(-projection.matrix // 2)),
            StateTensor(name="projection_scale", nbytes=FP32_BYTES * groups),
            StateTensor(name="projection_zero", nbytes=groups),
        )

    def record_refresh(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """An SVD; old and new directions are compared; the new ones are quantised and packed."""
        OwnGaLore8bit.record_refresh(self, frame, parameter, projection, phase)
        directions = frame.temporary(FP32_BYTES * projection.matrix, "directions")
        if phase is StepPhase.refresh:
            codes = frame.temporary(projection.matrix, "codes of P")
            old = frame.temporary(FP32_BYTES * projection.matrix, "old directions")
            frame.free(codes)
            lengths = frame.temporary(FP32_BYTES * projection.rank, "lengths")
            frame.free(frame.temporary(FP32_BYTES * projection.rank, "lengths"))
            products = frame.temporary(FP32_BYTES * projection.matrix, "products")
            cosines = frame.temporary(FP32_BYTES * projection.rank, "cosines")
            frame.free(products, lengths, cosines, old)
        codes = frame.temporary(projection.matrix, "codes of P")
        frame.free(codes, directions)

    def record_project(self, frame: Frame, projection: Projection) -> list[Block]:
        """P from its codes, and the projected gradient."""
        codes = frame.temporary(projection.matrix, "codes of P")
        unpacked = frame.temporary(projection.matrix * self.param_dtype_bytes, "P")
        frame.free(codes)
        return [*OwnGaLore8bit.record_project(self, frame, projection), unpacked]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnQApollo(OwnGaLore8bit):
    """P drawn from a seed in each step; the scaled gradient is never formed."""

    scales_tensor: bool = False

    def projection_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """One norm."""
        del projection
        return (StateTensor(name="limiter_norm", nbytes=FP32_BYTES),)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Draw P, project, step the moments, derive the factors, limit the norm's growth, add."""
        projection = self.projection(parameter)
        if projection is None:
            OwnGaLore8bit.update(self, frame, parameter, phase)
            return
        if phase is StepPhase.first:
            self.record_states(frame, parameter)
        by_row = projection.is_right or self.scales_tensor
        channels = FP32_BYTES * (1 if self.scales_tensor else projection.long_side)
        low_shape = (projection.long_side, projection.rank)
        drawn = frame.temporary(projection.matrix * self.param_dtype_bytes, "P")
        projected = frame.temporary(projection.low_rank * self.param_dtype_bytes, "projected gradient")
        frame.free(drawn)
        norms = self._record_norms(
            frame, low_shape if projection.is_right else low_shape[::-1], by_row=by_row
        )
        workspace = record_chunk_workspace(
            frame,
            projection.low_rank,
            self.param_dtype_bytes,
            len(ADAM.moments),
            quantised=is_quantised(projection.low_rank),
        )
        frame.free(*workspace)
        factors = self._record_norms(
            frame, low_shape if projection.is_right else low_shape[::-1], by_row=by_row
        )
        frame.free(norms, projected)
        rows, columns = parameter.shape
        channel_norms = self._record_channel_norms(frame, (rows, columns), by_row=by_row)
        held = [frame.temporary(FP32_BYTES, "norm") for _ in range(3)]
        frame.free(*held)
        if self.param_dtype_bytes != FP32_BYTES:
            frame.free(frame.temporary(channels // 2, "factors in the parameters' dtype"))
        frame.free(factors, channel_norms)

    def _record_norms(self, frame: Frame, shape: tuple[int, int], *, by_row: bool) -> Block:
        """A norm per channel of the projected gradient, or one of all."""
        norms = self._record_channel_norms(frame, shape, by_row=by_row)
        if not self.scales_tensor:
            return norms
        norm = frame.temporary(FP32_BYTES, "norm")
        frame.free(norms)
        return norm

    def _record_channel_norms(self, frame: Frame, shape: tuple[int, int], *, by_row: bool) -> Block:
        """Norms of rows or columns, taken in fp32 pieces unless they are rows of fp32.

        Source: projection.py, `norms_in_pieces`.
        Assumes: pieces of about 2^18 elements.
        """
        rows, columns = shape
        norms = frame.temporary(FP32_BYTES * (rows if by_row else columns), "channel norms")
        if by_row and self.param_dtype_bytes == FP32_BYTES:
            return norms
        piece_rows = min(rows, max(1, CHUNK_SIZE // columns))
        piece = frame.temporary(FP32_BYTES * piece_rows * columns, "piece")
        if not by_row:
            frame.free(frame.temporary(FP32_BYTES * columns, "sums of a piece"))
        frame.free(piece)
        return norms

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 2 m n r; bytes = s (5 m n + 4 r N + 2 r M) + 2 x moments' bytes for a projected matrix.

        The gradient is read to be projected, for its channels' norms and to be added; the weights are read and written.

        Source: q_apollo.py.
        Assumes: a chunk's copies stay in cache.
        """
        projection = self.projection(parameter)
        if projection is None:
            return OwnGaLore8bit.update_work(self, parameter)
        numel = projection.low_rank
        moments = own_blockwise_states(numel, ADAM, quantised=is_quantised(numel))
        elements = 5 * projection.full + 4 * numel + 2 * projection.matrix
        moved = elements * self.param_dtype_bytes + 2 * sum(state.nbytes for state in moments)
        return StepWork(projection.product_flops, moved, 0, self.update_interval)
