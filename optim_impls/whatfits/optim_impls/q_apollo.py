"""Q-APOLLO and Q-APOLLO-Mini: APOLLO with 8-bit moments in its low-rank space, and weights that can be 8-bit integers.

Hanqing Zhu, Zhenyu Zhang, Wenyan Cong, Xi Liu, Sem Park, Vikas Chandra, Bo Long, David Z. Pan, Zhangyang Wang, Jinwon
Lee: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270, Algorithm 1, section 4.2 (Mini: rank 1, one
factor per matrix); with INT8 weights as in Q-GaLore, arXiv:2407.08296. Other parameters get 8-bit AdamW.

The random projection is drawn from a seed in every step, as the paper has it, and not kept. The norm of the scaled
gradient comes from norms of the gradient's channels, so that the scaled gradient is never formed.

A rank above a matrix's shorter side is cut to it. The released code keeps the projection, and does not cut the rank.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.base import Group, State
from whatfits.optim_impls.blockwise import update_in_chunks
from whatfits.optim_impls.blockwise_8bit import ADAM_MOMENTS
from whatfits.optim_impls.chunks import rows_at_a_time
from whatfits.optim_impls.declare import Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.galore_8bit import (
    DEFAULTS as GALORE_DEFAULTS,
)
from whatfits.optim_impls.galore_8bit import (
    GaLore8bit,
    GaLore8bitDeclaration,
    moments_workspace,
    stable_number,
)
from whatfits.optim_impls.int8_weights import add_to_int8, int8_of
from whatfits.optim_impls.low_rank import limit_growth, write_adam_direction
from whatfits.optim_impls.projection import (
    LowRank,
    draw_random,
    low_rank_of,
    norms_in_pieces,
    norms_in_pieces_bytes,
    seeded_generator,
)

__all__ = ["ENTRIES", "QApollo", "QApolloDeclaration"]


class QApollo(GaLore8bit):
    """Q-APOLLO for groups of role `matrix`, 8-bit AdamW for the others; `tensor_wise` is the Mini form."""

    def __init__(self, params: Any, **hyper: Any) -> None:  # the defaults' names and types
        if not isinstance(hyper["tensor_wise"], bool):
            raise ValueError(f"tensor_wise is {hyper['tensor_wise']!r}; accepted: True or False")  # noqa: TRY004
        super().__init__(params, **hyper)

    def init_projection(self, param: Tensor, low: LowRank, group: Group) -> State:
        """The last norm of the scaled gradient; P is drawn anew in each step."""
        del low
        norm = torch.zeros((), dtype=torch.float32, device=param.device)
        return {"limiter_norm": norm, "number": stable_number(param, group)}

    def draw_projection(self, state: State, low: LowRank, group: Group, like: Tensor) -> Tensor:
        """P ~ N(0, 1 / r), the same for all steps between two refreshes."""
        refresh = (state["step"] - 1) // group["projection_update_interval"]
        generator = seeded_generator(group["seed"], state["number"], -1 - refresh, like.device)
        projection = torch.empty(low.projection_shape, dtype=like.dtype, device=like.device)
        draw_random(projection, generator, rank=low.rank)
        return projection

    def _update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        low = low_rank_of(tuple(param.shape), group["rank"], as_it_lies=True)
        factors = self._factors(grad, low, state, group)
        norms = norms_in_pieces(grad, by_row=low.is_right or group["tensor_wise"])
        self._limit(factors, norms, state)
        factors = factors.unsqueeze(1) if low.is_right and factors.dim() else factors
        self._add_scaled(param, grad, factors, state, group)

    def _limit(self, factors: Tensor, norms: Tensor, state: State) -> None:
        """Limit the growth of the scaled gradient's norm, which is that of its channels' norms. Changes both."""
        norm = torch.linalg.vector_norm(norms.mul_(factors))
        factors.div_(limit_growth(norm, state["limiter_norm"]))

    def _factors(self, grad: Tensor, low: LowRank, state: State, group: Group) -> Tensor:
        """|direction| / |projected gradient| times the scale: (N,) or, tensor-wise, (). fp32."""
        projection = self.draw_projection(state, low, group, grad)
        projected = grad @ projection.T if low.is_right else projection.T @ grad
        del projection
        norms = _norms(projected, low, tensor_wise=group["tensor_wise"])
        update = partial(write_adam_direction, step=state["step"], betas=group["betas"], eps=group["eps"])
        update_in_chunks(projected, projected, state, ADAM_MOMENTS, update, chunk_size=group["chunk_size"])
        factors = _norms(projected, low, tensor_wise=group["tensor_wise"])
        scale: float = group["projection_scale"]
        factors.div_(norms.clamp_(min=1e-30)).mul_(math.sqrt(scale) if group["tensor_wise"] else scale)
        return factors

    def _add_scaled(self, param: Tensor, grad: Tensor, factors: Tensor, state: State, group: Group) -> None:
        lr, keep = group["lr"], 1 - group["lr"] * group["weight_decay"]
        weight = int8_of(param)
        if weight is None and (keep == 1 or param.dtype is torch.float32):
            if keep != 1:
                param.mul_(keep)
            param.addcmul_(grad, factors.to(param.dtype), value=-lr)
            return
        by_row = factors.dim() == 2

        def write(values: Tensor, scratch: Tensor, rows: slice) -> None:
            torch.mul(grad[rows], factors[rows] if by_row else factors, out=scratch)
            values.mul_(keep).sub_(scratch, alpha=lr)

        if weight is None:
            _change_in_fp32(param, write)
            return
        generator = seeded_generator(group["seed"], state["number"], state["step"], param.device)
        add_to_int8(weight, write, generator)


def _norms(projected: Tensor, low: LowRank, *, tensor_wise: bool) -> Tensor:
    """Norm of each channel of a projected gradient, or of all of it."""
    norms = norms_in_pieces(projected, by_row=low.is_right or tensor_wise)
    if not tensor_wise:
        return norms
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm


def _change_in_fp32(param: Tensor, write: Callable[[Tensor, Tensor, slice], None]) -> None:
    """Change weights of lower precision in fp32, some rows at a time, so that they are rounded once."""
    rows, step = param.shape[0], rows_at_a_time(tuple(param.shape))
    values, scratch = (param.new_empty((step, param.shape[1]), dtype=torch.float32) for _ in range(2))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        k = part.stop - start
        values[:k].copy_(param[part])
        write(values[:k], scratch[:k], part)
        param[part].copy_(values[:k])


@dataclass(frozen=True, slots=True)
class QApolloDeclaration(GaLore8bitDeclaration):
    """Bytes of `QApollo`, for weights in a float dtype; integers need `int8_weights.int8_update_bytes` more."""

    def treatment(self, role: Role) -> str:
        """Matrices' gradients are scaled."""
        return (
            "gradient scaled by factors of 8-bit moments in a low-rank space"
            if role is Role.MATRIX
            else "8-bit adamw"
        )

    def projection_states(self, parameter: Parameter, low: LowRank) -> tuple[StateTensor, ...]:
        """One norm."""
        del parameter, low
        return (StateTensor("limiter_norm", (), torch.float32),)

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """P, the projected gradient, a chunk's workspace and one or two numbers a channel; no phase differs."""
        if parameter.role is not Role.MATRIX:
            return super(QApolloDeclaration, self).transient_bytes(parameter, hyper, phase)
        low = low_rank_of(parameter.shape, hyper["rank"], as_it_lies=True)
        dtype, mini = parameter.dtype, hyper["tensor_wise"]
        rows, columns = parameter.shape
        by_row = low.is_right or mini
        projected, factors = low.low_numel * dtype.itemsize, 4 * (1 if mini else low.long_side)
        # Norms of the projected gradient are taken with it, those of the direction with the former.
        measuring = projected + factors + norms_in_pieces_bytes(low.low_shape, dtype, by_row=by_row)
        if mini:
            measuring = max(measuring, projected + factors + 4 * low.low_shape[0] + 4)
        limiting = factors + norms_in_pieces_bytes((rows, columns), dtype, by_row=by_row)
        limited = factors + 4 * (rows if by_row else columns) + 12
        adding = factors + 4 * (rows if by_row else columns)
        if dtype is not torch.float32:
            adding += 8 * rows_at_a_time((rows, columns)) * columns if hyper["weight_decay"] else factors // 2
        return max(
            low.rank * low.short_side * dtype.itemsize + projected,
            measuring,
            projected + factors + moments_workspace(low.low_numel, dtype, hyper),
            limiting,
            limited,
            adding,
        )


DEFAULTS: Mapping[str, Any] = {
    **{name: value for name, value in GALORE_DEFAULTS.items() if name != "subspace"},
    "projection_scale": 1.0,
    "tensor_wise": False,
}
MINI_DEFAULTS: Mapping[str, Any] = {**DEFAULTS, "rank": 1, "projection_scale": 128.0, "tensor_wise": True}


def _entry(name: str, title: str, summary: str, defaults: Mapping[str, Any]) -> OptimizerEntry:
    return OptimizerEntry(
        name=name,
        title=title,
        summary=summary,
        paper="Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270",
        licence="Apache-2.0",
        source="own",
        build=lambda groups, hyper: QApollo(groups, **hyper),
        defaults=defaults,
        declaration=QApolloDeclaration(),
        paper_differences="The released code keeps the random projection, which is drawn from a seed here, and does not "
        "cut the rank: here a rank above a matrix's shorter side is cut to that side.",
    )


ENTRIES = (
    _entry(
        "q_apollo",
        "Q-APOLLO",
        "APOLLO with 8-bit moments and weights that can be 8-bit integers.",
        DEFAULTS,
    ),
    _entry(
        "q_apollo_mini",
        "Q-APOLLO-Mini",
        "APOLLO-Mini, almost without state for matrices, with weights that can be 8-bit integers.",
        MINI_DEFAULTS,
    ),
)
