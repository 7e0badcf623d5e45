"""Sophia divides a momentum by an estimate of the Hessian's diagonal: AdamW's state, and no element moves more than lr.

Hong Liu, Zhiyuan Li, David Hall, Percy Liang, Tengyu Ma: Sophia: A Scalable Stochastic Second-order Optimizer for
Language Model Pre-training, arXiv:2305.14342, Algorithm 3 with the Gauss-Newton-Bartlett estimator, Algorithm 2. The
training loop estimates every tenth step or so: a forward pass, labels drawn from the softmax of its logits,
``backward()`` of their mean loss with no other gradients left, `SophiaG.update_hessian`, ``zero_grad()``.

Differs from the paper, as the authors' code does (Liuhong99/Sophia, SophiaG): the batch size is a factor of the step
and not of the estimate, and 1e-15 is added to the denominator where the paper takes the larger of it and 1e-12. The
update runs over pieces that stay in cache: 6 passes over memory where separate operators take 24.
"""

from collections.abc import Callable
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
from whatfits.optim_impls.chunks import CHUNK, chunks, scratch_for
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRY", "SophiaG", "sophia_update"]

EPS = 1e-15
"""Source: Liuhong99/Sophia, sophia.py, `_single_tensor_sophiag`."""
STATES = ("exp_avg", "hessian")


def sophia_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    hessian: Tensor,
    scratch: Tensor,
    *,
    lr: float,
    beta: float,
    curvature_scale: float,
    weight_decay: float,
) -> None:
    """In place, m <- b m + (1 - b) g, then p <- (1 - lr wd) p - lr clip(m / (s h + eps), 1) with s the curvature scale.

    All tensors have one shape; `scratch` is overwritten, `hessian` is read.
    """
    exp_avg.lerp_(grad, 1 - beta)
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    torch.mul(hessian, curvature_scale, out=scratch).add_(EPS)
    torch.div(exp_avg, scratch, out=scratch).clamp_(-1.0, 1.0)
    param.add_(scratch, alpha=-lr)


class SophiaG(PerParameterOptimizer):
    """Sophia with decoupled weight decay; every parameter gets the same update.

    `rho` is the paper's gamma and `bs` its B, the number of tokens over which the loss behind `update_hessian` is a mean.
    Until the first estimate every element moves by lr, as in Lion.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        *,
        bs: int = 5120,
    ) -> None:
        check_non_negative("lr", lr)
        check_positive("rho", rho)
        check_non_negative("weight_decay", weight_decay)
        check_positive("bs", bs)
        for number, beta in enumerate(betas):
            check_fraction(f"betas[{number}]", beta)
        defaults = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay, "bs": bs}
        super().__init__(params, defaults)

    def init_state(self, param: Tensor, group: Group) -> State:  # noqa: ARG002 (the same for every group)
        """Momentum and Hessian estimate in the parameter's dtype."""
        return {name: torch.zeros_like(param) for name in STATES}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, bs: int | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returns.

        Args:
            closure: Computes gradients.
            bs: Tokens of a batch from this step on; None keeps the last.

        Raises:
            RuntimeError: a gradient is sparse.
            ValueError: `bs` is not above 0.
        """
        if bs is not None:
            check_positive("bs", bs)
            for group in self.param_groups:
                group["bs"] = bs
        return super().step(closure)

    @torch.no_grad()
    def update_hessian(self) -> None:
        """H <- b2 h + (1 - b2) g^2, in place, from gradients of sampled labels.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        for group in self.param_groups:
            decay = group["betas"][1]
            for _, grad, state in self.with_gradients(group):
                for piece, hessian in chunks(grad, state["hessian"]):
                    hessian.mul_(decay).addcmul_(piece, piece, value=1 - decay)

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Piece by piece."""
        scratch = scratch_for(param)
        for piece, piece_grad, exp_avg, hessian in chunks(param, grad, state["exp_avg"], state["hessian"]):
            sophia_update(
                piece,
                piece_grad,
                exp_avg,
                hessian,
                scratch[: piece.numel()].view(piece.shape),
                lr=group["lr"],
                beta=group["betas"][0],
                curvature_scale=group["rho"] * group["bs"],
                weight_decay=group["weight_decay"],
            )


class _Declaration:
    """Momentum and Hessian estimate; one piece of temporaries."""

    def treatment(self, role: Role) -> str:  # noqa: ARG002 (the same for every role)
        return "sophia"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return tuple(StateTensor(name, parameter.shape, parameter.dtype) for name in STATES)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        """The update of one piece; the estimate's is in place."""
        return min(parameter.numel, CHUNK) * parameter.dtype.itemsize

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        """None: the training loop decides when the Hessian is estimated."""
        return None


_DEFAULTS: dict[str, Any] = {
    "lr": 1e-4,
    "betas": (0.965, 0.99),
    "rho": 0.04,
    "weight_decay": 0.1,
    "bs": 5120,
}

ENTRY = OptimizerEntry(
    name="sophia",
    title="Sophia",
    summary="Momentum over an estimated Hessian diagonal, clipped: AdamW's states, for fewer steps.",
    paper="Liu et al.: Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, "
    "arXiv:2305.14342",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: SophiaG(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(
        layerwise=False,
        shards=frozenset({"ddp", "fsdp2"}),
        reasons={
            "layerwise": "The backward pass on sampled labels, after which update_hessian is called, must not update weights."
        },
    ),
    paper_differences="The batch size is a factor of the step (bs), not of the estimate, and 1e-15 is added to the "
    "denominator, as in the authors' code; the training loop calls update_hessian() every tenth step or so.",
)
