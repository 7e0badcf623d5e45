"""Lion keeps one momentum per parameter and moves every element by the same step: half of AdamW's state.

Xiangning Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, Algorithm 2. Nothing differs from
the paper. The update runs over pieces that stay in cache: 5 passes over memory where separate operators take 11.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import Group, PerParameterOptimizer, State, check_fraction, check_non_negative
from whatfits.optim_impls.chunks import CHUNK, chunks, scratch_for, signs_into
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRY", "Lion", "lion_update"]


def lion_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    scratch: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """In place, p <- (1 - lr wd) p - lr sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g.

    All tensors have one shape; `scratch` is overwritten.
    """
    torch.lerp(exp_avg, grad, 1 - betas[0], out=scratch)
    exp_avg.lerp_(grad, 1 - betas[1])
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    # A moving average that begins at 0 is never -0.0.
    param.add_(scratch, alpha=-lr * signs_into(scratch, scratch, negative_zeros=False))


class Lion(PerParameterOptimizer):
    """Lion with decoupled weight decay; every parameter gets the same update."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_non_negative("lr", lr)
        check_non_negative("weight_decay", weight_decay)
        for number, beta in enumerate(betas):
            check_fraction(f"betas[{number}]", beta)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def init_state(self, param: Tensor, group: Group) -> State:  # noqa: ARG002 (the same for every group)
        """The momentum in the parameter's dtype."""
        return {"exp_avg": torch.zeros_like(param)}

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Piece by piece."""
        scratch = scratch_for(param)
        for piece, piece_grad, exp_avg in chunks(param, grad, state["exp_avg"]):
            lion_update(
                piece,
                piece_grad,
                exp_avg,
                scratch[: piece.numel()].view(piece.shape),
                lr=group["lr"],
                betas=group["betas"],
                weight_decay=group["weight_decay"],
            )


class _Declaration:
    """One momentum; one piece of temporaries."""

    def treatment(self, role: Role) -> str:  # noqa: ARG002 (the same for every role)
        return "lion"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return (StateTensor("exp_avg", parameter.shape, parameter.dtype),)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        """The update of one piece."""
        return min(parameter.numel, CHUNK) * parameter.dtype.itemsize

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        return None


_DEFAULTS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}

ENTRY = OptimizerEntry(
    name="lion",
    title="Lion",
    summary="The sign of a momentum: one state per parameter, half of AdamW's.",
    paper="Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: Lion(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(shards=frozenset({"ddp", "fsdp2"})),
    trainer_name="lion_32bit",
)
