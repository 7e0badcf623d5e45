"""Fira: GaLore plus the part of the gradient it drops, scaled per channel; GaLore's state and one number.

Xi Chen, Kaituo Feng, Changsheng Li, Xunhao Lai, Xiangyu Yue, Ye Yuan, Guoren Wang: Fira: Can We Achieve Full-rank
Training of LLMs Under Low-rank Constraint?, arXiv:2410.01623, Algorithm 1: norm-based scaling (equation 5) and the
limiter of the residual norm's growth (equation 6).

In the paper the factor alpha (`projection_scale`) scales both parts, which is the default. The released code and
pytorch-optimizer scale each back-projection instead: the update P^T U, and P^T R inside the residual, which itself is not
scaled; `scales_residual=False` does that.

No full-size tensor is made: as P is orthonormal, |g_j - c P^T r_j|^2 = |g_j|^2 - c (2 - c) |r_j|^2, and the residual
goes into the weights as a scaled gradient and one product.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.base import Group, State
from whatfits.optim_impls.declare import Hyper, Phase, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.galore import (
    SUBSPACE_DEFAULTS,
    SubspaceOptimizer,
    projected_states,
    refreshed_transient,
)
from whatfits.optim_impls.low_rank import (
    COUNT_BYTES,
    LowRankDeclaration,
    bias_correction,
    limit_growth,
    state_direction,
)
from whatfits.optim_impls.projection import LowRank, channel_norms, tall

__all__ = ["ENTRY", "Fira", "add_with_residual", "residual_transient"]

NORM_BYTES = 4


def add_with_residual(
    param: Tensor,  # (N, M)
    grad: Tensor,  # (N, M)
    projection: Tensor,  # (r, M), orthonormal rows
    projected: Tensor,  # (N, r), changed
    direction: Tensor,  # (N, r), changed
    norms: Tensor,  # (N, 1) fp32, of the gradient, changed
    last_norm: Tensor,  # ()
    *,
    rate: float,
    weight: float,
    kept: float,
    correction: float,
) -> None:
    """P <- p - rate (U P + weight S / limiter), with S = s_j (g_j - kept r_j P) and s_j = |u_j| / |r_j|.

    `correction` is Adam's of its bias, which U has in it and the limited norm has not.
    """
    factors = torch.linalg.vector_norm(direction, dim=1, keepdim=True, dtype=torch.float32)
    low_norms = torch.linalg.vector_norm(projected, dim=1, keepdim=True, dtype=torch.float32)
    squares = norms.square_().addcmul_(low_norms, low_norms, value=-kept * (2 - kept)).clamp_(min=0.0)
    factors.div_(low_norms.add_(1e-8))
    del low_norms
    norm = squares.mul_(factors).mul_(factors).sum().sqrt_().div_(correction)
    factors.div_(limit_growth(norm, last_norm))
    low_factors = factors.to(param.dtype)
    del factors
    # What of both parts lies in the subspace: U - weight kept s R.
    direction.addcmul_(projected, low_factors, value=-kept * weight)
    param.addmm_(direction, projection, alpha=-rate)
    param.addcmul_(grad, low_factors, value=-rate * weight)


class Fira(SubspaceOptimizer):
    """Fira for groups of role `matrix`, AdamW for the others."""

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """GaLore's state and the norm of the last scaled residual."""
        norm = torch.zeros((), dtype=param.dtype, device=param.device)
        return {**super().init_matrix(param, low, group), "limiter_norm": norm}

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """AdamW's direction in the subspace, the scaled gradient outside of it."""
        self.refresh(grad, state, group)
        lr = group["lr"]
        norms = channel_norms(tall(grad), rows_at_once=group["rank"])
        projected = tall(grad) @ state["projection"].T
        direction = state_direction(projected, state, group)
        if group["weight_decay"]:
            param.mul_(1 - lr * group["weight_decay"])
        scale = group["projection_scale"]
        in_both = group["scales_residual"]
        add_with_residual(
            tall(param),
            tall(grad),
            state["projection"],
            projected,
            direction,
            norms,
            state["limiter_norm"],
            rate=lr * scale,
            weight=1.0 if in_both else 1.0 / scale,
            kept=1.0 if in_both else scale,
            correction=bias_correction(state["step"], group["betas"]),
        )


def residual_transient(low: LowRank, dtype: torch.dtype) -> int:
    """Projected gradient, direction and three norms per channel: 2 r N s + 12 N."""
    size = 2 * low.rank * low.long_side * dtype.itemsize
    return size + 3 * NORM_BYTES * low.long_side


def _states(low: LowRank, dtype: torch.dtype, hyper: Hyper) -> tuple[StateTensor, ...]:
    """(r M + 2 r N + 1) s bytes."""
    return (*projected_states(low, dtype, hyper), StateTensor("limiter_norm", (), dtype))


def _transient(low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """2 r N s + 12 N, or the refresh."""
    steady = max(residual_transient(low, dtype), COUNT_BYTES)
    return refreshed_transient(steady, low, dtype, hyper, phase)


DEFAULTS: Mapping[str, Any] = {**SUBSPACE_DEFAULTS, "scales_residual": True}

ENTRY = OptimizerEntry(
    name="fira",
    title="Fira",
    summary="GaLore plus the residual it drops, scaled: GaLore's state, the update of full rank.",
    paper="Chen et al.: Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?, arXiv:2410.01623",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: Fira(groups, **hyper),
    defaults=DEFAULTS,
    declaration=LowRankDeclaration(_states, _transient),
    paper_differences="The paper scales update and residual by alpha, which is the default; the released code scales the "
    "back-projections: scales_residual=False.",
)
