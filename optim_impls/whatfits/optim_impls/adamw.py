"""AdamW in one pass over memory, for the parameters a memory-efficient method leaves to it.

Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay Regularization, arXiv:1711.05101, Algorithm 2. torch's fused
kernel reads and writes each tensor once and allocates nothing.
"""

from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.declare import Parameter, StateTensor

__all__ = ["adamw_states", "fused_adamw", "init_adamw_state", "step_adamw"]


def init_adamw_state(param: Tensor) -> dict[str, Any]:
    """Both moments in the parameter's dtype, and the step as a number."""
    return {"step": 0, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}


def adamw_states(parameter: Parameter) -> tuple[StateTensor, ...]:
    """What `init_adamw_state` makes: 2 e s bytes."""
    return tuple(StateTensor(name, parameter.shape, parameter.dtype) for name in ("exp_avg", "exp_avg_sq"))


def fused_adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW update in place. All tensors have param's shape; moments may be of another dtype than bf16 weights only if equal.

    `step` counts from 1. Computed in fp32 inside the kernel, rounded once on writing. One 4-byte tensor is allocated.
    """
    count = torch.full((), float(step), dtype=torch.float32, device=param.device)
    torch._fused_adamw_(  # the only allocation-free form; torch.optim.AdamW(fused=True) calls it alike
        [param],
        [grad],
        [exp_avg],
        [exp_avg_sq],
        [],
        [count],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def step_adamw(param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """One update from a parameter's state, whose `step` counts from 1 by now, and its group's hyper-parameters."""
    fused_adamw(
        param,
        grad,
        state["exp_avg"],
        state["exp_avg_sq"],
        step=state["step"],
        lr=group["lr"],
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    )
