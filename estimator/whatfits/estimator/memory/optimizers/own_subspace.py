"""LDAdam and SubTrack++ as `whatfits.optim_impls` writes them, the only code of them that is modelled.

arXiv:2410.16103 (LDAdam) and arXiv:2502.01586 (SubTrack++). The allocations are those of ldadam.py and subtrack.py,
equal to traced steps (tests/contract/test_optimizers.py).

Not modelled: what cuSOLVER takes for SubTrack++'s SVD of an r x M matrix beyond the rule of `record_svd`.
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.linalg_scratch import record_qr, record_svd
from whatfits.estimator.memory.optimizers.low_rank import Projection
from whatfits.estimator.memory.optimizers.own_low_rank import OwnFira, OwnLowRank, record_svd_refresh
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["LDAdam", "SubTrack"]

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LDAdam(OwnLowRank):
    """`whatfits.optim_impls.ldadam` with error feedback: one power iteration a step, the error kept as state."""

    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """P, two moments and the error: (r M + 2 r N + m n) s bytes.

        Source: arXiv:2410.16103 Algorithm 1; ldadam.py.
        Assumes: the error is not kept in the gradient's memory, as the released code does.
        """
        error = StateTensor(name="error", nbytes=projection.full * self.param_dtype_bytes)
        return (self.p_state(projection), *self.moments(projection), error)

    def record_matrix(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """The first subspace by SVD, later ones from the last; then AdamW's direction."""
        if phase is StepPhase.first:
            record_svd_refresh(frame, parameter.shape, self.param_dtype_bytes)
            projected = self.record_projected(frame, projection)
        else:
            self._record_follow(frame, projection)
            size = self.param_dtype_bytes
            new = frame.temporary(projection.matrix * size, "new projection")
            change = frame.temporary(projection.rank**2 * size, "change of subspace")
            projected = self.record_projected(frame, projection)
            frame.free(frame.temporary(projection.matrix * size, "lost directions"))
            squared = frame.temporary(projection.rank**2 * size, "squared change")
            frame.free(frame.temporary(projection.low_rank * size, "moved second moment"), squared)
            frame.free(frame.temporary(projection.low_rank * size, "moved moment"), change, new)
        frame.free(*self.record_direction(frame, projection, projected))

    def _record_follow(self, frame: Frame, projection: Projection) -> None:
        """The image of P, the power iteration's result, and its QR in fp32."""
        size = self.param_dtype_bytes
        image = self.record_projected(frame, projection)
        product = frame.temporary(projection.rank**2 * size, "moment times image")
        back = frame.temporary(projection.matrix * size, "power iteration")
        frame.free(product, image)
        is_fp32 = size == FP32_BYTES
        casts = [] if is_fp32 else [frame.temporary(projection.matrix * FP32_BYTES, "fp32 power iteration")]
        q = frame.temporary(projection.matrix * FP32_BYTES, "qr.Q")
        r = frame.temporary(projection.rank**2 * FP32_BYTES, "qr.R")
        record_qr(frame, projection.short_side, projection.rank)
        frame.free(*casts, r, back, q)

    def matrix_work(self, projection: Projection) -> StepWork:
        """FLOPs = 12 m n r; bytes = s (12 m n + 9 r N + 6 r M).

        The error takes the gradient 3; two products of the power iteration read it 2, the projection 1; two products
        change the error 4 and one the weights 2.

        Source: ldadam.py.
        Assumes: no reuse in cache; the SVD of the first step alone.
        """
        return self.work(projection, full=12, products=6, has_svd=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubTrack(OwnFira):
    """`whatfits.optim_impls.subtrack`: Fira's update in a subspace that is turned at a refresh."""

    def matrix_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """P, two moments and one norm: (r M + 2 r N + 1) s bytes.

        Source: arXiv:2502.01586 Table 1 (m r + 2 n r) with the limiter's norm; subtrack.py.
        Assumes: only the last P is kept.
        """
        return (self.p_state(projection), *self.moments(projection), self.norm_state())

    def record_refresh(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """The SVD of the gradient in the first step; later that of the r x M tangent, and the moments' move."""
        if phase is StepPhase.first:
            record_svd_refresh(frame, parameter.shape, self.param_dtype_bytes)
            return
        size, rank, short_side = self.param_dtype_bytes, projection.rank, projection.short_side
        image = self.record_projected(frame, projection)
        product = frame.temporary(projection.matrix * size, "image times gradient")
        square = frame.temporary(rank**2 * size, "image squared")
        tangent = frame.temporary(projection.matrix * size, "tangent")
        frame.free(product, square)
        if size != FP32_BYTES:
            cast = frame.temporary(projection.matrix * FP32_BYTES, "fp32 tangent")
            frame.free(tangent)
            tangent = cast
        frame.free(image)
        sizes = {"svd.U": rank**2, "svd.Vh": projection.matrix, "svd.S": rank}
        factors = [frame.temporary(FP32_BYTES * numel, label) for label, numel in sizes.items()]
        record_svd(frame, rank, short_side)
        frame.free(tangent)
        turned = frame.temporary(FP32_BYTES * projection.matrix, "turned projection")
        rows = [frame.temporary(FP32_BYTES * (short_side + 1), label) for label in ("along", "across")]
        frame.free(*rows, *factors, turned)
        change = frame.temporary(rank**2 * size, "change of subspace")
        squared = frame.temporary(rank**2 * size, "squared change")
        frame.free(frame.temporary(projection.low_rank * size, "moved second moment"), squared)
        frame.free(frame.temporary(projection.low_rank * size, "moved moment"), change)

    def matrix_work(self, projection: Projection) -> StepWork:
        """Fira's work, without a repeated SVD.

        Source: subtrack.py.
        Assumes: the refresh's products and the SVD of an r x M matrix are not counted.
        """
        return self.work(projection, full=7, products=2, small=8, has_svd=False)
