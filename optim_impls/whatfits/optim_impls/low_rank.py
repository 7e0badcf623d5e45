"""What the methods that project gradients to a low rank share: groups, AdamW in the low-rank space, declarations.

Groups of role `matrix` are projected; other groups get AdamW in one pass over memory.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.adamw import adamw_states, fused_adamw, init_adamw_state, step_adamw
from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_fraction,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.declare import Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.projection import PROJECTORS, LowRank, low_rank_of

__all__ = [
    "COUNT_BYTES",
    "LOW_RANK_DEFAULTS",
    "LowRankDeclaration",
    "LowRankOptimizer",
    "bias_correction",
    "check_low_rank_hyper",
    "limit_growth",
    "low_rank_moments",
    "moment_states",
    "state_direction",
    "write_adam_direction",
]

COUNT_BYTES = 4
"""Of the step number that the fused kernel takes as a tensor."""

GROWTH_LIMIT = 1.01
"""By how much a norm may grow from step to step: gamma of arXiv:2410.01623, section 3.3."""

LOW_RANK_DEFAULTS: Mapping[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "rank": 128,
}


def adam_direction(
    projected: Tensor,  # (N, r)
    exp_avg: Tensor,  # (N, r)
    exp_avg_sq: Tensor,  # (N, r)
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Update both moments; return m' / (sqrt(v') + eps), bias corrected. Shape: (N, r)."""
    direction = torch.zeros_like(projected)
    fused_adamw(
        direction,
        projected,
        exp_avg,
        exp_avg_sq,
        step=step,
        lr=-1.0,
        betas=betas,
        eps=eps,
        weight_decay=0.0,
    )
    return direction


def state_direction(projected: Tensor, state: State, group: Group) -> Tensor:
    """`adam_direction` with the moments and the step of a parameter's state. Shape: (N, r)."""
    return adam_direction(
        projected,
        state["exp_avg"],
        state["exp_avg_sq"],
        step=state["step"],
        betas=group["betas"],
        eps=group["eps"],
    )


def bias_correction(step: int, betas: tuple[float, float]) -> float:
    """What Adam's bias-corrected direction is larger by than the uncorrected: sqrt(1 - b2^t) / (1 - b1^t)."""
    return math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)


def write_adam_direction(
    out: Tensor,  # (k,) fp32, may be grad
    grad: Tensor,  # (k,) fp32
    moments: Sequence[Tensor],  # exp_avg and exp_avg_sq, (k,) fp32
    *,
    step: int,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """As `adam_direction`, with no tensor made: for a chunk of moments kept in fewer bits."""
    exp_avg, exp_avg_sq = moments
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    torch.sqrt(exp_avg_sq, out=out)
    out.div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
    torch.div(exp_avg, out, out=out).div_(1 - betas[0] ** step)


def limit_growth(norm: Tensor, last_norm: Tensor, *, limit: float = GROWTH_LIMIT) -> Tensor:
    """What an update is divided by so that its norm grows by `limit` at most; `last_norm` becomes its norm after that.

    A last norm of 0 limits nothing: that of the first step, or of a gradient of zeros.
    Shapes: norm () fp32, last_norm () of any dtype; returns () fp32. arXiv:2410.01623, equation 6.
    """
    limiter = norm.div(last_norm.float() + 1e-8).clamp_(min=limit).div_(limit)
    limiter.masked_fill_(last_norm == 0, 1.0)
    last_norm.copy_(norm / limiter)
    return limiter


def low_rank_moments(low: LowRank, param: Tensor) -> State:
    """Both moments of the projected gradient in the parameter's dtype."""
    return {
        name: torch.zeros(low.low_shape, dtype=param.dtype, device=param.device)
        for name in ("exp_avg", "exp_avg_sq")
    }


def moment_states(low: LowRank, dtype: torch.dtype) -> tuple[StateTensor, ...]:
    """What `low_rank_moments` makes: 2 r N s bytes."""
    return tuple(StateTensor(name, low.low_shape, dtype) for name in ("exp_avg", "exp_avg_sq"))


class LowRankOptimizer(PerParameterOptimizer):
    """Groups of role `matrix` as the method has it, AdamW for the others."""

    clips_rank: ClassVar[bool] = True
    """Whether the rank is at most the shorter side, as that of an SVD."""

    def __init__(self, params: ParamsT, **hyper: Any) -> None:  # the defaults' names and types
        check_low_rank_hyper(hyper)
        super().__init__(params, hyper)

    @abstractmethod
    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """State of a projected matrix."""

    @abstractmethod
    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Update a projected matrix; `state["step"]` counts from 1."""

    def low_rank(self, param: Tensor, group: Group) -> LowRank:
        """Sizes of a projected matrix."""
        return low_rank_of(tuple(param.shape), group["rank"], clips=self.clips_rank)

    def init_state(self, param: Tensor, group: Group) -> State:
        """State of the method or of AdamW; `number` tells equally shaped matrices apart."""
        if group["role"] != Role.MATRIX:
            return init_adamw_state(param)
        place = next(i for i, other in enumerate(group["params"]) if other is param)
        number = group.get("first_number", 0) + place
        return {"step": 0, "number": number, **self.init_matrix(param, self.low_rank(param, group), group)}

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """AdamW, or the method's own update."""
        state["step"] += 1
        if group["role"] == Role.MATRIX:
            self.update_matrix(param, grad, state, group)
            return
        step_adamw(param, grad, state, group)


def check_low_rank_hyper(hyper: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first shared argument out of range."""
    for name in ("lr", "weight_decay"):
        check_non_negative(name, hyper[name])
    for number, beta in enumerate(hyper.get("betas", ())):
        check_fraction(f"betas[{number}]", beta)
    for name in ("eps", "rank", "projection_update_interval", "projection_scale"):
        if name in hyper:
            check_positive(name, hyper[name])
    if hyper.get("subspace", "svd") not in PROJECTORS:
        raise ValueError(f"subspace is {hyper['subspace']!r}; accepted: {', '.join(PROJECTORS)}")


@dataclass(frozen=True, slots=True)
class LowRankDeclaration:
    """Bytes of a low-rank method, from what it says of a matrix."""

    matrix_states: Callable[[LowRank, torch.dtype, Hyper], tuple[StateTensor, ...]]
    matrix_transient: Callable[[LowRank, torch.dtype, Hyper, Phase], int]
    clips_rank: bool = True

    def treatment(self, role: Role) -> str:
        """Matrices are projected."""
        return "projected" if role is Role.MATRIX else "adamw"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """The method's of a matrix, else AdamW's."""
        if parameter.role is not Role.MATRIX:
            return adamw_states(parameter)
        return self.matrix_states(self._low(parameter, hyper), parameter.dtype, hyper)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """None."""
        del hyper
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """The method's of a matrix, else the step number of AdamW's kernel."""
        if parameter.role is not Role.MATRIX:
            return COUNT_BYTES
        return self.matrix_transient(self._low(parameter, hyper), parameter.dtype, hyper, phase)

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Steps from refresh to refresh."""
        interval: int | None = hyper.get("projection_update_interval")
        return interval

    def _low(self, parameter: Parameter, hyper: Hyper) -> LowRank:
        return low_rank_of(parameter.shape, hyper["rank"], clips=self.clips_rank)
