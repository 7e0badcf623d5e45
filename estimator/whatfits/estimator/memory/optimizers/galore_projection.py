"""GaLore's projection: what P holds, and what its refresh by SVD allocates.

Jiawei Zhao, Zhenyu Zhang, Beidi Chen, Zhangyang Wang, Anima Anandkumar, Yuandong Tian: GaLore: Memory-Efficient LLM
Training by Gradient Low-Rank Projection, ICML 2024, arXiv:2403.03507. Rules read in galore-torch 1.0
(jiaweizzhao/GaLore, commit 2cc66f8), galore_projector.py.

Differs from the paper: in fp32 that code keeps the slice ``Vh[:rank]`` (or ``U[:, :rank]``), a view that holds the
whole M x M factor in memory. Lower precisions are cast back from the fp32 SVD, which copies the slice only.
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.low_rank import LowRankProgram, Projection
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StepPhase

__all__ = ["PROJECTION", "SVD_INTERNAL", "GaLoreProgram"]

PROJECTION = "projection"
"""Name of the state tensor P."""

SVD_INTERNAL = ("svd.info", "svd.input")
"""Labels of what `torch.linalg.svd` allocates inside its kernel: the status and a copy of its input."""

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreProgram(LowRankProgram):
    """Base of the GaLore variants (`proj_type` "std": the shorter side is projected).

    `keeps_svd_factor` tells whether an fp32 P holds the whole SVD factor; False is an implementation that copies
    the slice, such as pytorch-optimizer's.
    """

    keeps_svd_factor: bool = True

    @property
    def _p_is_view(self) -> bool:
        return self.keeps_svd_factor and self.param_dtype_bytes == FP32_BYTES

    def projection_bytes(self, projection: Projection) -> int:
        """Bytes of P: s r M, or 4 M M where an fp32 slice holds the whole factor.

        Source: galore_torch/galore_projector.py, `get_orthogonal_matrix`.
        Assumes: the SVD is thin (``full_matrices=False``).
        """
        if self._p_is_view:
            return FP32_BYTES * projection.short_side**2
        return projection.matrix * self.param_dtype_bytes

    def record_project(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> Block:
        """``projector.project(grad, step)``: the projected gradient, after a refresh where one is due."""
        if phase is not StepPhase.steady:
            self._record_svd(frame, parameter, projection)
        if phase is StepPhase.refresh:
            frame.drop_state(parameter.name, PROJECTION, self.projection_bytes(projection))
        return frame.temporary(projection.low_rank * self.param_dtype_bytes, "projected gradient")

    def record_project_back(self, frame: Frame, projection: Projection) -> Block:
        """``projector.project_back(update)``: the product, then a scaled copy."""
        nbytes = projection.full * self.param_dtype_bytes
        product = frame.temporary(nbytes, "back-projection")
        scaled = frame.temporary(nbytes, "scaled back-projection")
        frame.free(product)
        return scaled

    def _record_svd(self, frame: Frame, parameter: ParameterTensor, projection: Projection) -> None:
        """`get_orthogonal_matrix`: thin SVD in fp32, and the slice P.

        Besides U, S and Vh the code makes an fp32 copy of a lower-precision gradient, a diagonal matrix of the
        leading singular values, and one product it never uses; `torch.linalg.svd` copies its input.

        Source: galore_torch/galore_projector.py; aten/src/ATen/native/BatchLinearAlgebra.cpp, `_linalg_svd_out`, and
        cuda/linalg/BatchLinearAlgebraLib.cpp, `svd_cusolver`.
        Assumes: gesvdj converges; cuSOLVER's own workspace, whose size is not documented, is left out.
        """
        whole = projection.full * FP32_BYTES
        scratch: list[Block] = []
        if self.param_dtype_bytes != FP32_BYTES:
            scratch.append(frame.temporary(whole, "svd.gradient"))
        # P comes from the M x M factor: Vh where m >= n, else U.
        if projection.is_right:
            scratch.append(frame.temporary(whole, "svd.U"))
        else:
            self._record_basis(frame, parameter, projection, scratch, "svd.U")
        scratch.append(frame.temporary(projection.short_side * FP32_BYTES, "svd.S"))
        if projection.is_right:
            self._record_basis(frame, parameter, projection, scratch, "svd.Vh")
        else:
            scratch.append(frame.temporary(whole, "svd.Vh"))
        info = frame.temporary(FP32_BYTES, SVD_INTERNAL[0])
        frame.free(frame.temporary(whole, SVD_INTERNAL[1]), info)
        diagonal = frame.temporary(projection.rank**2 * FP32_BYTES, "diag(S)")
        scratch.append(frame.temporary(projection.low_rank * FP32_BYTES, "unused product"))
        frame.free(diagonal)
        if not self._p_is_view:
            frame.state(parameter.name, PROJECTION, self.projection_bytes(projection))
        frame.free(*scratch)

    def _record_basis(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        projection: Projection,
        scratch: list[Block],
        label: str,
    ) -> None:
        nbytes = projection.short_side**2 * FP32_BYTES
        if self._p_is_view:
            frame.state(parameter.name, PROJECTION, nbytes)
        else:
            scratch.append(frame.temporary(nbytes, label))
