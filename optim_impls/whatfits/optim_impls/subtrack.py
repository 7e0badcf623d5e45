"""SubTrack++: GaLore's state, a subspace that is turned instead of found anew, and Fira's residual.

Sahar Rajabi, Nayeema Nonta, Sirisha Rambhatla: SubTrack++: Gradient Subspace Tracking for Scalable LLM Training,
arXiv:2502.01586: a rank-1 step along a geodesic of the Grassmannian every `projection_update_interval` steps, moments carried over as
in LDAdam (arXiv:2410.16103), recovery of what the projection drops as in Fira (arXiv:2410.01623). Written from the paper;
the released code has no licence.

Differs from the released code: the projection before the last is not kept. The least-squares error's gradient is
-2 A^T (G - A P), of which the leading singular triple is taken; neither the residual nor anything else of the gradient's
size is made.

Defaults: rank 128, interval 200, scale 0.25 and step size 10 are those of the released script for LLaMA-60M
(criticalml-uw/SubTrack, scripts/c4/llama_60m.sh at c5d7c06). Its README uses 512 and 10000 for 1B, its script for 7B 1024,
500 steps and 10. That the paper's tables say the same is recalled, unverified.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import Group, State, check_positive
from whatfits.optim_impls.declare import Hyper, Phase, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.fira import add_with_residual, residual_transient
from whatfits.optim_impls.galore import projected_states
from whatfits.optim_impls.ldadam import rotate_moments
from whatfits.optim_impls.low_rank import (
    COUNT_BYTES,
    LOW_RANK_DEFAULTS,
    LowRankDeclaration,
    LowRankOptimizer,
    bias_correction,
    low_rank_moments,
    state_direction,
)
from whatfits.optim_impls.projection import LowRank, channel_norms, refresh_bytes, svd_directions, tall

__all__ = ["ENTRY", "SubTrack", "turn_subspace"]

FP32_BYTES = 4


def turn_subspace(
    grad: Tensor,  # (N, M)
    projection: Tensor,  # (r, M)
    *,
    step_size: float,
) -> Tensor:
    """P turned by step_size * sigma along the steepest rank-1 geodesic; shape (r, M), fp32.

    With sigma u v^T the leading triple of 2 A^T (G - A P), A = G P^T: P' = P + u ((cos - 1) u^T P + sin v^T).
    """
    image = grad @ projection.T
    tangent = torch.addmm(image.T @ grad, image.T @ image, projection, alpha=-1).float().mul_(2)
    del image
    factors: tuple[Tensor, Tensor, Tensor] = torch.linalg.svd(tangent, full_matrices=False)
    del tangent
    u, sigma, v = factors[0][:, :1], factors[1][:1], factors[2][:1]
    angle = sigma * step_size
    turned = projection.to(torch.float32, copy=True)
    along = (u.T @ turned).mul_(angle.cos() - 1).add_(v * angle.sin())
    return turned.addmm_(u, along)


class SubTrack(LowRankOptimizer):
    """SubTrack++ for groups of role `matrix`, AdamW for the others."""

    def __init__(self, params: ParamsT, **hyper: Any) -> None:  # the defaults' names and types
        check_positive("subspace_step_size", hyper["subspace_step_size"])
        super().__init__(params, **hyper)

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """P, which the first step writes, moments, and the norm of the last scaled residual."""
        del group
        projection = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        norm = torch.zeros((), dtype=param.dtype, device=param.device)
        return {"projection": projection, **low_rank_moments(low, param), "limiter_norm": norm}

    def refresh(self, grad: Tensor, state: State, group: Group) -> None:
        """The SVD in the first step; later turn P and carry the moments over."""
        seen, projection = state["step"] - 1, state["projection"]
        if seen == 0:
            projection.copy_(svd_directions(grad, projection.shape[0]))
        elif seen % group["projection_update_interval"] == 0:
            turned = turn_subspace(tall(grad), projection, step_size=group["subspace_step_size"])
            turned = turned.to(projection.dtype)
            change = projection @ turned.T
            projection.copy_(turned)
            del turned
            rotate_moments(state["exp_avg"], state["exp_avg_sq"], change, step=seen, betas=group["betas"])

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """AdamW's direction in the subspace, the scaled gradient outside of it."""
        self.refresh(grad, state, group)
        norms = channel_norms(tall(grad), rows_at_once=group["rank"])
        projected = tall(grad) @ state["projection"].T
        direction = state_direction(projected, state, group)
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        add_with_residual(
            tall(param),
            tall(grad),
            state["projection"],
            projected,
            direction,
            norms,
            state["limiter_norm"],
            rate=group["lr"] * group["projection_scale"],
            weight=1.0,
            kept=1.0,
            correction=bias_correction(state["step"], group["betas"]),
        )


def _states(low: LowRank, dtype: torch.dtype, hyper: Hyper) -> tuple[StateTensor, ...]:
    """(r M + 2 r N + 1) s bytes."""
    return (*projected_states(low, dtype, hyper), StateTensor("limiter_norm", (), dtype))


def _transient(low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """Fira's; in the first step the SVD, at a refresh the tangent's."""
    del hyper
    steady = max(residual_transient(low, dtype), COUNT_BYTES)
    if phase is Phase.FIRST:
        return max(steady, refresh_bytes("svd", low, dtype, is_first=True))
    return steady if phase is Phase.STEADY else max(steady, turn_bytes(low, dtype))


def turn_bytes(low: LowRank, dtype: torch.dtype) -> int:
    """Image and tangent in their making, s (r N + 2 r M + r^2); the fp32 SVD of the tangent; or moments being moved."""
    size, thin, square = dtype.itemsize, low.rank * low.short_side, low.rank**2
    image = low.rank * low.long_side
    making = size * (image + 2 * thin + square)
    casting = size * (image + thin) + FP32_BYTES * thin
    # The tangent's factors and the tangent, or the factors and P in fp32 with two rows.
    svd = FP32_BYTES * (2 * thin + square + low.rank) + FP32_BYTES * (2 * low.short_side + 2)
    moving = size * (image + 2 * square)
    return max(making, casting if size < FP32_BYTES else 0, svd, moving)


DEFAULTS: Mapping[str, Any] = {
    **LOW_RANK_DEFAULTS,
    "projection_update_interval": 200,
    "projection_scale": 0.25,
    "subspace_step_size": 10.0,
}

ENTRY = OptimizerEntry(
    name="subtrack",
    title="SubTrack++",
    summary="GaLore's state with a subspace that is turned along the gradient's error instead of an SVD, plus the residual.",
    paper="Rajabi et al.: SubTrack++: Gradient Subspace Tracking for Scalable LLM Training, arXiv:2502.01586",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: SubTrack(groups, **hyper),
    defaults=DEFAULTS,
    declaration=LowRankDeclaration(_states, _transient),
    paper_differences="The released code, which has no licence, keeps the projection before the last as well.",
)
