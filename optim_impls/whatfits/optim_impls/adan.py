"""Adan estimates Nesterov momentum from differences of gradients: twice AdamW's state, for fewer steps.

Xingyu Xie, Pan Zhou, Huan Li, Zhouchen Lin, Shuicheng Yan: Adan: Adaptive Nesterov Momentum Algorithm for Faster
Optimizing Deep Models, arXiv:2208.06677, Algorithm 1, with m_0 = g_0, v_0 = 0, n_0 = g_0^2. `betas` are decay rates, 1
minus the paper's.

Differs from the paper: nothing by default. The authors' code (sail-sg/Adan) begins all moments at 0 and corrects their
bias instead: `bias_correction=True`. The paper counts three moments; the last gradient is a fourth tensor in both.
The start values m_0 = g_0, v_0 = 0, n_0 = g_0^2 are recalled, unverified: a summary of the paper names the first and the
last of them, the paper's own Algorithm 1 was not at hand.
The step allocates nothing: the last gradient's tensor holds the difference, then the denominator, then the gradient.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_fraction,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.chunks import chunks
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRY", "Adan", "adan_update"]

STATES = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")


def adan_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_diff: Tensor,
    exp_avg_sq: Tensor,
    previous_grad: Tensor,
    *,
    lr: float,
    betas: tuple[float, float, float],
    next_decay: float,
    corrections: tuple[float, float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """m, d, n <- moments of g, g - g' and (g + b2 (g - g'))^2; p <- (p - lr (m + b2 d) / (sqrt(n) + eps)) / (1 + lr wd).

    All tensors have one shape and change in place, the gradient excepted. `next_decay` is the paper's 1 - beta2 before
    the difference; `corrections` divide m, d and n.
    """
    torch.sub(grad, previous_grad, out=previous_grad)
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_diff.lerp_(previous_grad, 1 - betas[1])
    torch.add(grad, previous_grad, alpha=next_decay, out=previous_grad)
    exp_avg_sq.mul_(betas[2]).addcmul_(previous_grad, previous_grad, value=1 - betas[2])
    # (sqrt(n) / c + eps) = (sqrt(n) + c eps) / c, which spares a division of every element.
    root = sqrt(corrections[2])
    torch.sqrt(exp_avg_sq, out=previous_grad)
    previous_grad.add_(eps * root)
    param.addcdiv_(exp_avg, previous_grad, value=-lr * root / corrections[0])
    param.addcdiv_(exp_avg_diff, previous_grad, value=-lr * root * next_decay / corrections[1])
    if weight_decay:
        param.div_(1 + lr * weight_decay)
    previous_grad.copy_(grad)


class Adan(PerParameterOptimizer):
    """Adan with proximal weight decay; every parameter gets the same update."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = False,
    ) -> None:
        check_non_negative("lr", lr)
        check_positive("eps", eps)
        check_non_negative("weight_decay", weight_decay)
        for number, beta in enumerate(betas):
            check_fraction(f"betas[{number}]", beta)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})

    def init_state(self, param: Tensor, group: Group) -> State:  # noqa: ARG002 (the same for every group)
        """Three moments and the last gradient in the parameter's dtype."""
        return {"step": 0, **{name: torch.zeros_like(param) for name in STATES}}

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Piece by piece; the first step has no difference, and in the paper's form no past."""
        state["step"] += 1
        betas = group["betas"]
        decays, corrections = betas, (1.0, 1.0, 1.0)
        if group["bias_correction"]:
            corrections = tuple(1 - beta ** state["step"] for beta in betas)
        elif state["step"] == 1:
            decays = (0.0, betas[1], 0.0)
        if state["step"] == 1:
            state["previous_grad"].copy_(grad)
        for tensors in chunks(param, grad, *(state[name] for name in STATES)):
            adan_update(
                *tensors,
                lr=group["lr"],
                betas=decays,
                next_decay=betas[1],
                corrections=corrections,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )


class _Declaration:
    """Four states, no temporaries."""

    def treatment(self, role: Role) -> str:  # noqa: ARG002 (the same for every role)
        return "adan"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return tuple(StateTensor(name, parameter.shape, parameter.dtype) for name in STATES)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        return 0

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        return None


_DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.98, 0.92, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "bias_correction": False,
}

ENTRY = OptimizerEntry(
    name="adan",
    title="Adan",
    summary="Three moments and the last gradient: twice AdamW's states, for fewer steps.",
    paper="Xie et al.: Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, arXiv:2208.06677",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: Adan(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(shards=frozenset({"ddp", "fsdp2"})),
    paper_differences="The authors' code begins moments at 0 and corrects their bias (bias_correction=True); "
    "the default begins them at the first gradient, as the paper does.",
)
