"""SM3 keeps one number per row and one per column of a matrix in place of a second moment per element.

Rohan Anil, Vineet Gupta, Tomer Koren, Yoram Singer: Memory-Efficient Adaptive Optimization, arXiv:1901.11150, Algorithm
SM3-II with the cover of a tensor by its slices (section 4): m + n numbers for an m x n matrix, e for a vector.

Differs from the paper: momentum is an option, 0 by default as in the paper's algorithm (its experiments take 0.9);
without it no momentum tensor exists. Accumulators begin at `eps`, not at
0: it stands in for the paper's 0 / 0 = 0.
"""

from math import prod
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
from whatfits.optim_impls.chunks import row_chunks, rows_per_chunk
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRY", "SM3", "sm3_update"]


def sm3_update(
    param: Tensor,
    grad: Tensor,
    rows: Tensor,
    others: list[Tensor],
    maxima: list[Tensor],
    momentum_buffer: Tensor | None,
    scratch: Tensor,
    *,
    lr: float,
    momentum: float,
) -> None:
    """In place, nu <- min of covers + g^2; covers <- max of nu over their slices; p <- p - lr g / sqrt(nu).

    `param`, `grad`, `momentum_buffer`, `scratch`: some rows of the parameter. `rows`: one number per row (d_0,).
    `others`: accumulators of the other dimensions, d_1, d_2, ..., only read; `maxima` collect their successors.
    """
    dims = range(param.ndim)
    bounds = [rows, *others]
    views = [bound.view([-1 if axis == dim else 1 for axis in dims]) for dim, bound in enumerate(bounds)]
    if len(views) == 1:
        scratch.copy_(rows)
    else:
        torch.minimum(views[0].expand_as(scratch), views[1], out=scratch)
        for view in views[2:]:
            torch.minimum(scratch, view, out=scratch)
    scratch.addcmul_(grad, grad)
    for dim, (bound, collected) in enumerate(zip(bounds, [None, *maxima], strict=True)):
        slices = tuple(axis for axis in dims if axis != dim)
        if collected is None:
            bound.copy_(scratch) if not slices else torch.amax(scratch, slices, out=bound)
        else:
            torch.maximum(collected, torch.amax(scratch, slices), out=collected)
    scratch.rsqrt_()
    if momentum_buffer is None:
        param.addcmul_(grad, scratch, value=-lr)
    else:
        param.add_(momentum_buffer.lerp_(scratch.mul_(grad), 1 - momentum), alpha=-lr)


class SM3(PerParameterOptimizer):
    """SM3-II; every parameter gets the same update, with as many accumulators as it has dimensions."""

    def __init__(self, params: ParamsT, lr: float = 0.1, momentum: float = 0.0, eps: float = 1e-30) -> None:
        check_non_negative("lr", lr)
        check_fraction("momentum", momentum)
        check_positive("eps", eps)
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    def init_state(self, param: Tensor, group: Group) -> State:
        """One accumulator per dimension in the parameter's dtype, and the momentum where there is one."""
        sizes = enumerate(param.shape or (1,))
        state = {f"accumulator_{dim}": param.new_full((size,), group["eps"]) for dim, size in sizes}
        if group["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Some rows at a time; the accumulators of other dimensions change once all rows are done."""
        buffer = state.get("momentum_buffer")
        if param.ndim == 0:
            param, grad = param.view(1), grad.view(1)
            buffer = None if buffer is None else buffer.view(1)
        rows, *others = (state[f"accumulator_{dim}"] for dim in range(param.ndim))
        maxima = [torch.zeros_like(other) for other in others]
        scratch = param.new_empty(rows_per_chunk(param.shape), *param.shape[1:])
        tensors = (param, grad, rows) if buffer is None else (param, grad, rows, buffer)
        for piece, piece_grad, piece_rows, *piece_buffer in row_chunks(*tensors):
            sm3_update(
                piece,
                piece_grad,
                piece_rows,
                others,
                maxima,
                piece_buffer[0] if piece_buffer else None,
                scratch[: len(piece)],
                lr=group["lr"],
                momentum=group["momentum"],
            )
        for other, collected in zip(others, maxima, strict=True):
            other.copy_(collected)


class _Declaration:
    """An accumulator per dimension; temporaries of one piece and of two vectors per other dimension."""

    def treatment(self, role: Role) -> str:  # noqa: ARG002 (the same for every role)
        return "sm3"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        sizes = parameter.shape or (1,)
        covers = [
            StateTensor(f"accumulator_{dim}", (size,), parameter.dtype) for dim, size in enumerate(sizes)
        ]
        if hyper["momentum"]:
            covers.append(StateTensor("momentum_buffer", parameter.shape, parameter.dtype))
        return tuple(covers)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        """A piece, the new maxima of all dimensions but the first, and one piece's maxima of one of them."""
        rest = parameter.shape[1:]
        piece = rows_per_chunk(parameter.shape or (1,)) * prod(rest)
        return (piece + sum(rest) + max(rest, default=0)) * parameter.dtype.itemsize

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        return None


_DEFAULTS: dict[str, Any] = {"lr": 0.1, "momentum": 0.0, "eps": 1e-30}

ENTRY = OptimizerEntry(
    name="sm3",
    title="SM3",
    summary="One number per row and per column in place of AdamW's moments: almost no state.",
    paper="Anil et al.: Memory-Efficient Adaptive Optimization, arXiv:1901.11150",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: SM3(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(
        reasons={
            "shards": "A matrix's column numbers are maxima over all of its rows; shards would need a reduction."
        }
    ),
)
