"""APOLLO: gradients scaled by norms of AdamW's update in a random low-rank space; 2 r N + 1 numbers for a matrix.

Hanqing Zhu, Zhenyu Zhang, Wenyan Cong, Xi Liu, Sem Park, Vikas Chandra, Bo Long, David Z. Pan, Zhangyang Wang, Jinwon
Lee: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270, Algorithm 1; the limiter of the norm's growth is
that of arXiv:2410.01623. APOLLO has a factor per channel of the longer side, APOLLO-Mini (rank 1) one per matrix.

As in the paper P is drawn anew from a seed at each step, a new seed every `projection_update_interval` steps;
`stored_projection=True` keeps the same P in the state instead, as the released code does, r M numbers more. P is drawn
differently for every parameter (with layer-wise updates the released code gives equal shapes the same P). A random P has as many
directions as the rank says, also above the shorter side.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from whatfits.optim_impls.base import Group, State
from whatfits.optim_impls.declare import Hyper, Phase, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.low_rank import (
    COUNT_BYTES,
    LOW_RANK_DEFAULTS,
    LowRankDeclaration,
    LowRankOptimizer,
    bias_correction,
    limit_growth,
    low_rank_moments,
    moment_states,
    state_direction,
)
from whatfits.optim_impls.projection import LowRank, channel_norms, draw_random, seeded_generator, tall

__all__ = ["APOLLO", "ENTRIES", "scaled_gradient_update"]


def scaled_gradient_update(
    param: Tensor,  # (N, M)
    grad: Tensor,  # (N, M)
    factors: Tensor,  # (N, 1), or (1, 1) for one factor
    last_norm: Tensor,  # ()
    *,
    rate: float,
    correction: float,
    rank: int,
) -> None:
    """P <- p - rate c_j g_j, its norm limited; the scaled gradient is never formed: |c G|^2 = sum of (c_j |g_j|)^2.

    `correction` is Adam's of its bias, which the factors have in them and the limited norm has not. Changes `factors`.
    """
    if factors.numel() > 1:
        norms = channel_norms(grad, rows_at_once=rank // 2)
    else:
        norms = torch.linalg.vector_norm(grad, keepdim=True)
    norms.mul_(factors)
    norm = torch.linalg.vector_norm(norms).float().div_(correction)
    factors.div_(limit_growth(norm, last_norm))
    param.addcmul_(grad, factors, value=-rate)


class APOLLO(LowRankOptimizer):
    """APOLLO for groups of role `matrix`, AdamW for the others."""

    clips_rank: ClassVar[bool] = False

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """Moments of the projected gradient and a norm; P where it is stored."""
        state = low_rank_moments(low, param)
        state["limiter_norm"] = torch.zeros((), dtype=param.dtype, device=param.device)
        if group["stored_projection"]:
            state["projection"] = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        return state

    def projection(self, param: Tensor, state: State, group: Group) -> Tensor:
        """P of this step. Shape: (r, M)."""
        interval = group["projection_update_interval"]
        draw, since = divmod(state["step"] - 1, interval)
        stored: Tensor | None = state.get("projection")
        if stored is not None and since > 0:
            return stored
        low = self.low_rank(param, group)
        p = (
            torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
            if stored is None
            else stored
        )
        draw_random(p, seeded_generator(group["seed"], state["number"], draw, param.device), rank=low.rank)
        return p

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Scale the gradient by how AdamW would scale it in the low-rank space."""
        projected = tall(grad) @ self.projection(param, state, group).T
        direction = state_direction(projected, state, group)
        dim = None if group["scales_tensor"] else 1
        factors = torch.linalg.vector_norm(direction, dim=dim, keepdim=True)
        factors.div_(torch.linalg.vector_norm(projected, dim=dim, keepdim=True).add_(1e-8))
        del projected, direction
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        scaled_gradient_update(
            tall(param),
            tall(grad),
            factors,
            state["limiter_norm"],
            rate=group["lr"] * math.sqrt(group["projection_scale"]),
            correction=bias_correction(state["step"], group["betas"]),
            rank=group["rank"],
        )


def _states(low: LowRank, dtype: torch.dtype, hyper: Hyper) -> tuple[StateTensor, ...]:
    """(2 r N + 1) s bytes, and r M s for a stored P."""
    states = (*moment_states(low, dtype), StateTensor("limiter_norm", (), dtype))
    stored = (StateTensor("projection", low.projection_shape, dtype),)
    return states + stored if hyper["stored_projection"] else states


def _transient(low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """P and the projected gradient, then that with the update and two norms per factor: s max(r M + r N, 2 r N + 2 c)."""
    del phase
    drawn = 0 if hyper["stored_projection"] else low.rank * low.short_side
    low_numel = low.rank * low.long_side
    factors = 1 if hyper["scales_tensor"] else low.long_side
    scaling = dtype.itemsize * (2 * low_numel + 2 * factors)
    return max(dtype.itemsize * (drawn + low_numel), 2 * dtype.itemsize * low_numel + COUNT_BYTES, scaling)


DEFAULTS: Mapping[str, Any] = {
    **LOW_RANK_DEFAULTS,
    "projection_update_interval": 200,
    "projection_scale": 1.0,
    "scales_tensor": False,
    "stored_projection": False,
    "seed": 0,
}
_PAPER = "Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270"
_DIFFERENCES = (
    "The paper draws the projection anew from its seed, which is the default; the released code keeps it: "
    "stored_projection=True. The growth of the update's norm is limited as in the released code."
)
_DECLARATION = LowRankDeclaration(_states, _transient, clips_rank=False)

ENTRIES = (
    OptimizerEntry(
        name="apollo",
        title="APOLLO",
        summary="Scales raw gradients per channel by moments of a random low-rank projection; no SVD.",
        paper=_PAPER,
        licence="Apache-2.0",
        source="own",
        build=lambda groups, hyper: APOLLO(groups, **hyper),
        defaults=DEFAULTS,
        declaration=_DECLARATION,
        paper_differences=_DIFFERENCES,
        trainer_name="apollo_adamw",
    ),
    OptimizerEntry(
        name="apollo_mini",
        title="APOLLO-Mini",
        summary="APOLLO with rank 1 and one factor per matrix: almost no state for linear layers.",
        paper=_PAPER,
        licence="Apache-2.0",
        source="own",
        build=lambda groups, hyper: APOLLO(groups, **hyper),
        defaults={**DEFAULTS, "rank": 1, "scales_tensor": True, "projection_scale": 128.0},
        declaration=_DECLARATION,
        paper_differences=_DIFFERENCES,
        trainer_name="apollo_adamw",
    ),
)
