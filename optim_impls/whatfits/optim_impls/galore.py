"""GaLore: AdamW on gradients projected to their leading directions, 2 r N + r M numbers for a matrix.

Jiawei Zhao, Zhenyu Zhang, Beidi Chen, Zhangyang Wang, Anima Anandkumar, Yuandong Tian: GaLore: Memory-Efficient LLM
Training by Gradient Low-Rank Projection, arXiv:2403.03507, Algorithm 2.

Differs from galore-torch 1.0: the update goes into the weights by one product, no full-size tensor is made; P is a
copy, so that no M x M factor stays behind it; eps is added to the bias-corrected root, as in the paper. `subspace`
chooses how P is found: `svd` as in the paper, `randomised` or `warm` (projection.py).
"""

from collections.abc import Mapping
from typing import Any

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
    low_rank_moments,
    moment_states,
    state_direction,
)
from whatfits.optim_impls.projection import PROJECTORS, LowRank, refresh_bytes, seeded_generator, tall

__all__ = [
    "ENTRY",
    "SUBSPACE_DEFAULTS",
    "GaLore",
    "SubspaceOptimizer",
    "projected_states",
    "refresh_projection",
    "refreshed_transient",
]


def refresh_projection(projection: Tensor, grad: Tensor, state: State, group: Group) -> None:
    """Write P, its directions as rows, where a refresh is due. Shapes: projection (r, M), grad (m, n)."""
    draw, since = divmod(state["step"] - 1, group["projection_update_interval"])
    if since == 0:
        generator = seeded_generator(group["seed"], state["number"], draw, grad.device)
        find, last = PROJECTORS[group["subspace"]], projection if draw else None
        projection.copy_(find(grad, projection.shape[0], generator, last=last))


class SubspaceOptimizer(LowRankOptimizer):
    """Base of the methods that find P from the gradient every `projection_update_interval` steps."""

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """P, which the first step writes, and moments of the projected gradient."""
        del group
        projection = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        return {"projection": projection, **low_rank_moments(low, param)}

    def refresh(self, grad: Tensor, state: State, group: Group) -> None:
        """Write P where a refresh is due."""
        refresh_projection(state["projection"], grad, state, group)


class GaLore(SubspaceOptimizer):
    """GaLore for groups of role `matrix`, AdamW for the others."""

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """P <- (1 - lr weight_decay) p - lr scale U P, with U AdamW's direction for A P^T."""
        self.refresh(grad, state, group)
        projected = tall(grad) @ state["projection"].T
        direction = state_direction(projected, state, group)
        lr = group["lr"]
        decay, rate = 1 - lr * group["weight_decay"], -lr * group["projection_scale"]
        tall(param).addmm_(direction, state["projection"], beta=decay, alpha=rate)


def projected_states(low: LowRank, dtype: torch.dtype, hyper: Hyper) -> tuple[StateTensor, ...]:
    """P and two moments: (r M + 2 r N) s bytes."""
    del hyper
    return (StateTensor("projection", low.projection_shape, dtype), *moment_states(low, dtype))


def refreshed_transient(steady: int, low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """What an update holds, or its refresh if that is more."""
    if phase is Phase.STEADY:
        return steady
    return max(steady, refresh_bytes(hyper["subspace"], low, dtype, is_first=phase is Phase.FIRST))


def _transient(low: LowRank, dtype: torch.dtype, hyper: Hyper, phase: Phase) -> int:
    """Projected gradient and direction: 2 r N s + 4."""
    steady = 2 * low.rank * low.long_side * dtype.itemsize + COUNT_BYTES
    return refreshed_transient(steady, low, dtype, hyper, phase)


SUBSPACE_DEFAULTS: Mapping[str, Any] = {
    **LOW_RANK_DEFAULTS,
    "projection_update_interval": 200,
    "projection_scale": 0.25,
    "subspace": "svd",
    "seed": 0,
}

ENTRY = OptimizerEntry(
    name="galore_adamw",
    title="GaLore",
    summary="AdamW on gradients projected by SVD: moments of linear layers shrink to rank / shorter side.",
    paper="Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: GaLore(groups, **hyper),
    defaults=SUBSPACE_DEFAULTS,
    declaration=LowRankDeclaration(projected_states, _transient),
    paper_differences="eps is added after the correction of the bias, as in the paper; galore-torch adds it before.",
    trainer_name="galore_adamw",
)
