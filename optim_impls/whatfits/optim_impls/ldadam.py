"""LDAdam: AdamW in a subspace that follows the gradient at every step, with an error buffer for what it drops.

Thomas Robert, Mher Safaryan, Ionut-Vlad Modoranu, Dan Alistarh: LDAdam: Adaptive Optimization from Low-Dimensional
Gradient Statistics, arXiv:2410.16103, Algorithm 1: projection-aware moments (section 3.1), subspaces by one block power
iteration (section 3.2), generalised error feedback (section 3.3). An m x n matrix keeps 2 r N + r M numbers and the
error, m n; `error_feedback=False` does without it.

Differs from the released code: that keeps the error in `.grad`, where clipping changes it and a loop that frees
gradients loses it, and which a checkpoint lacks; here it is state. Matrices of the gradient's size are never formed: the power
iteration multiplies b = rho m P + (1 - rho) g with a thin matrix term by term.

Defaults: rank 16, rho 0.908, betas (0.908, 0.99) and error feedback are those of the released code (IST-DASLab/LDAdam at
f3c5daf). That the paper states them too is recalled, unverified.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import Group, State, check_fraction
from whatfits.optim_impls.declare import Hyper, Phase, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.galore import projected_states
from whatfits.optim_impls.low_rank import (
    COUNT_BYTES,
    LOW_RANK_DEFAULTS,
    LowRankDeclaration,
    LowRankOptimizer,
    low_rank_moments,
    state_direction,
)
from whatfits.optim_impls.projection import LowRank, refresh_bytes, svd_directions, tall

__all__ = ["ENTRY", "LDAdam", "follow_subspace", "rotate_moments"]

FP32_BYTES = 4


def follow_subspace(
    grad: Tensor,  # (N, M)
    exp_avg: Tensor,  # (N, r)
    projection: Tensor,  # (r, M)
    *,
    momentum_weight: float,
    grad_weight: float,
) -> Tensor:
    """One block power iteration from P for b = momentum_weight m P + grad_weight g. Shape: (r, M)."""
    # b P^T, since P P^T = 1.
    image = torch.addmm(exp_avg, grad, projection.T, beta=momentum_weight, alpha=grad_weight)
    back = projection.T @ (exp_avg.T @ image)
    back.addmm_(grad.T, image, beta=momentum_weight, alpha=grad_weight)
    del image
    q: Tensor = torch.linalg.qr(back.float())[0]
    return q.T.to(projection.dtype)


def rotate_moments(
    exp_avg: Tensor,  # (N, r)
    exp_avg_sq: Tensor,  # (N, r)
    change: Tensor,  # (r, r): old P times the transpose of the new
    *,
    step: int,
    betas: tuple[float, float],
) -> None:
    """Express both moments, which have seen `step` gradients, in the new subspace (section 3.1).

    v' = |(v - m^2) C^2 + (m C)^2|, both corrected for their bias.
    """
    bias1, bias2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    exp_avg_sq.div_(bias2).addcmul_(exp_avg, exp_avg, value=-1 / bias1**2)
    exp_avg_sq.copy_(exp_avg_sq @ change.square())
    exp_avg.copy_(exp_avg @ change)
    exp_avg_sq.addcmul_(exp_avg, exp_avg, value=1 / bias1**2).abs_().mul_(bias2)


class LDAdam(LowRankOptimizer):
    """LDAdam for groups of role `matrix`, AdamW for the others."""

    def __init__(self, params: ParamsT, **hyper: Any) -> None:  # the defaults' names and types
        check_fraction("rho", hyper["rho"])
        super().__init__(params, **hyper)

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """P, which the first step writes, moments, and the error."""
        projection = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        state = {"projection": projection, **low_rank_moments(low, param)}
        if group["error_feedback"]:
            state["error"] = torch.zeros_like(param)
        return state

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Add the error, follow the subspace, carry the moments over, step, keep what was dropped."""
        error: Tensor | None = state.get("error")
        total = grad if error is None else error.add_(grad)
        projection = state["projection"]
        if state["step"] == 1:
            projection.copy_(svd_directions(total, projection.shape[0]))
            projected = tall(total) @ projection.T
        else:
            projected = self._follow(tall(total), state, group)
        if error is not None:
            tall(error).addmm_(projected, projection, alpha=-1)
        direction = state_direction(projected, state, group)
        lr = group["lr"]
        tall(param).addmm_(direction, projection, beta=1 - lr * group["weight_decay"], alpha=-lr)

    def _follow(self, total: Tensor, state: State, group: Group) -> Tensor:
        """Move P and the moments, keep in the error what the moment loses; the projected gradient. Shape: (N, r)."""
        old, exp_avg, (beta1, _) = state["projection"], state["exp_avg"], group["betas"]
        seen, rho = state["step"] - 1, group["rho"]
        new = follow_subspace(
            total, exp_avg, old, momentum_weight=rho / (1 - beta1**seen), grad_weight=1 - rho
        )
        change = old @ new.T
        projected = total @ new.T
        if group["error_feedback"]:
            # m P - (m C) P', of which nothing is in the new subspace.
            lost = torch.addmm(old, change, new, alpha=-1)
            total.addmm_(exp_avg, lost, alpha=beta1 / (1 - beta1))
            del lost
        rotate_moments(exp_avg, state["exp_avg_sq"], change, step=seen, betas=group["betas"])
        old.copy_(new)
        return projected


def _states(low: LowRank, dtype: torch.dtype, hyper: Hyper) -> tuple[StateTensor, ...]:
    """P, two moments and the error: (r M + 2 r N + m n) s bytes."""
    states = projected_states(low, dtype, hyper)
    error = (StateTensor("error", (low.long_side, low.short_side), dtype),)
    return states + error if hyper["error_feedback"] else states


def _transient(low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """The SVD of the first step; later a QR, or what moving the moments holds."""
    size, thin, square = dtype.itemsize, low.rank * low.short_side, low.rank**2
    low_numel = low.rank * low.long_side
    adam = 2 * low_numel * size + COUNT_BYTES
    if phase is Phase.FIRST:
        return max(adam, refresh_bytes("svd", low, dtype, is_first=True))
    lost = 2 * thin + square + low_numel if hyper["error_feedback"] else 0
    moving = max(lost, 2 * low_numel + thin + 2 * square)
    return max(adam, follow_bytes(low, dtype), size * moving)


def follow_bytes(low: LowRank, dtype: torch.dtype) -> int:
    """Image, its product and a square: s (r N + r M + r^2); or the fp32 QR of r M elements."""
    thin, square = low.rank * low.short_side, low.rank**2
    qr = FP32_BYTES * (thin + square) + dtype.itemsize * thin
    qr += 0 if dtype is torch.float32 else FP32_BYTES * thin
    return max(dtype.itemsize * (low.rank * low.long_side + thin + square), qr)


DEFAULTS: Mapping[str, Any] = {
    **LOW_RANK_DEFAULTS,
    "betas": (0.908, 0.99),
    "rank": 16,
    "rho": 0.908,
    "error_feedback": True,
}

ENTRY = OptimizerEntry(
    name="ldadam",
    title="LDAdam",
    summary="AdamW's moments in a subspace that follows the gradient at every step, with error feedback.",
    paper="Robert et al.: LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics, arXiv:2410.16103",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: LDAdam(groups, **hyper),
    defaults=DEFAULTS,
    declaration=LowRankDeclaration(_states, _transient),
    paper_differences="The error is state of its own; the released code keeps it in the gradient's memory.",
)
