"""GaLore's projection: what P holds, and what its refresh by SVD allocates.

Jiawei Zhao, Zhenyu Zhang, Beidi Chen, Zhangyang Wang, Anima Anandkumar, Yuandong Tian: GaLore: Memory-Efficient LLM
Training by Gradient Low-Rank Projection, ICML 2024, arXiv:2403.03507. Rules read in galore-torch 1.0
(jiaweizzhao/GaLore, commit 2cc66f8), galore_projector.py.

Differs from the paper: in fp32 that code keeps the slice ``Vh[:rank]`` (or ``U[:, :rank]``), a view that holds the
whole M x M factor in memory. Lower precisions are cast back from the fp32 SVD, which copies the slice only.

Events of steps recorded on an H100 (benchmarks/gpu_recordings, `steps`) equal these, cuSOLVER's workspace included.
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.linalg_scratch import record_svd
from whatfits.estimator.memory.optimizers.low_rank import LowRankProgram, Projection
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StepPhase

__all__ = ["PROJECTION", "GaLoreProgram"]

PROJECTION = "projection"
"""Name of the state tensor P."""

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreProgram(LowRankProgram):
    """Base of the GaLore variants (`proj_type` "std": the shorter side is projected).

    `keeps_svd_factor` tells whether an fp32 P holds the whole SVD factor; False is an implementation that copies
    the slice, such as pytorch-optimizer's.
    """

    keeps_svd_factor: bool = True

    @property
    def gradient_dtype_bytes(self) -> int:
        """Bytes per element of the gradient that is projected, and of what is computed from it."""
        return self.param_dtype_bytes

    @property
    def _p_is_view(self) -> bool:
        return self.keeps_svd_factor and self.gradient_dtype_bytes == FP32_BYTES

    def projection_bytes(self, projection: Projection) -> int:
        """Bytes of P: s r M, or 4 M M where an fp32 slice holds the whole factor.

        Source: galore_torch/galore_projector.py, `get_orthogonal_matrix`.
        Assumes: the SVD is thin (``full_matrices=False``).
        """
        if self._p_is_view:
            return FP32_BYTES * projection.short_side**2
        return projection.matrix * self.gradient_dtype_bytes

    def record_project(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> Block:
        """``projector.project(grad, step)``: the projected gradient, after a refresh where one is due."""
        if phase is not StepPhase.steady:
            self.record_refresh(frame, parameter, projection)
        if phase is StepPhase.refresh:
            frame.drop_state(parameter.name, PROJECTION, self.projection_bytes(projection))
        return frame.temporary(projection.low_rank * self.gradient_dtype_bytes, "projected gradient")

    def record_project_back(self, frame: Frame, projection: Projection) -> Block:
        """``projector.project_back(update)``: the product, then a scaled copy."""
        nbytes = projection.full * self.gradient_dtype_bytes
        product = frame.temporary(nbytes, "back-projection")
        scaled = frame.temporary(nbytes, "scaled back-projection")
        frame.free(product)
        return scaled

    def record_refresh(self, frame: Frame, parameter: ParameterTensor, projection: Projection) -> None:
        """`get_orthogonal_matrix`: thin SVD in fp32, and the slice P.

        Besides U, Vh and S the code makes an fp32 copy of a lower-precision gradient, a diagonal matrix of the
        leading singular values, and one product it never uses.

        Source: galore_torch/galore_projector.py; `record_svd` for what the SVD allocates inside its kernel.
        Assumes: gesvdj converges.
        """
        scratch: list[Block] = []
        if self.gradient_dtype_bytes != FP32_BYTES:
            scratch.append(frame.temporary(projection.full * FP32_BYTES, "svd.gradient"))
        scratch += self.record_svd_factors(frame, parameter, projection)
        diagonal = frame.temporary(projection.rank**2 * FP32_BYTES, "diag(S)")
        scratch.append(frame.temporary(projection.low_rank * FP32_BYTES, "unused product"))
        frame.free(diagonal)
        if not self._p_is_view:
            frame.state(parameter.name, PROJECTION, self.projection_bytes(projection))
        frame.free(*scratch)

    def record_svd_factors(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection
    ) -> list[Block]:
        """``torch.linalg.svd(matrix)``; the temporaries among U, S and Vh, in the order of their names' slots.

        Where P is a slice that holds its factor, that factor is P's state. The factor of M x M is Vh where m >= n,
        else U.
        """
        long_factor = projection.full * FP32_BYTES
        square_factor = projection.short_side**2 * FP32_BYTES
        factors: dict[str, Block] = {}
        # CUDA makes U and Vh before S.
        for label in ("svd.U", "svd.Vh"):
            is_square = (label == "svd.Vh") == projection.is_right
            if is_square and self._p_is_view:
                frame.state(parameter.name, PROJECTION, square_factor)
            else:
                factors[label] = frame.temporary(square_factor if is_square else long_factor, label)
        singular = frame.temporary(projection.short_side * FP32_BYTES, "svd.S")
        record_svd(frame, *parameter.shape)
        ordered = (factors.get("svd.U"), singular, factors.get("svd.Vh"))
        return [block for block in ordered if block is not None]
