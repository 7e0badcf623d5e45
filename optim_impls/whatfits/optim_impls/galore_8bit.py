"""GaLore with 8-bit AdamW: moments of the projected gradient in 8 bits, 2 r N + r M s bytes for an m x n matrix.

Jiawei Zhao, Zhenyu Zhang, Beidi Chen, Zhangyang Wang, Anima Anandkumar, Yuandong Tian: GaLore: Memory-Efficient LLM
Training by Gradient Low-Rank Projection, arXiv:2403.03507, Algorithm 2 and section 4.2 (8-bit). With M = min(m, n) and
N = max(m, n), the shorter side is projected to rank r. Other parameters get 8-bit AdamW.

Differs from galore-torch 1.0: the update is added to the weights by one product, without a copy of them or a back-
projected update; P is a copy of the singular vectors, so that no factor of M x M stays behind it; weight decay comes
with the same product; `subspace` chooses how P is found (projection.py). galore-torch with bitsandbytes 0.50 limits
updates to a norm of 100 by mistake; here nothing does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.blockwise import (
    CHUNK_SIZE,
    MIN_8BIT_SIZE,
    init_moments,
    is_quantised,
    load_codebooks,
    moment_states,
    shared_maps,
    update_in_chunks,
    workspace_bytes,
)
from whatfits.optim_impls.blockwise_8bit import ADAM_MOMENTS, STEP_COUNT_BYTES, adam_update
from whatfits.optim_impls.declare import Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.galore import SUBSPACE_DEFAULTS, refresh_projection
from whatfits.optim_impls.low_rank import check_low_rank_hyper, write_adam_direction
from whatfits.optim_impls.projection import LowRank, low_rank_of, refresh_bytes

__all__ = [
    "ENTRY",
    "GaLore8bit",
    "GaLore8bitDeclaration",
    "check_hyper",
    "stable_number",
]


def stable_number(param: Tensor, group: Group) -> int:
    """A number of a parameter that is the same in every run: from its name where groups have names, else its place."""
    place = next(i for i, other in enumerate(group["params"]) if other is param)
    names = group.get("param_names")
    return crc32(names[place].encode()) if names else place


class GaLore8bit(PerParameterOptimizer):
    """GaLore for groups of role `matrix`, 8-bit AdamW for the others."""

    def __init__(self, params: ParamsT, **hyper: Any) -> None:  # the defaults' names and types
        check_hyper(hyper)
        super().__init__(params, hyper)
        load_codebooks(self._all_params(), ADAM_MOMENTS)

    def init_state(self, param: Tensor, group: Group) -> State:
        """P and moments of r N elements; moments as large as the parameter where it is not projected."""
        shape: tuple[int, ...] = tuple(param.shape)
        extra: State = {}
        if group["role"] == Role.MATRIX:
            low = low_rank_of(tuple(param.shape), group["rank"], as_it_lies=True)
            shape, extra = low.low_shape, self.init_projection(param, low, group)
        quantised = is_quantised(math.prod(shape), min_8bit_size=group["min_8bit_size"])
        return init_moments(shape, ADAM_MOMENTS, quantised=quantised, device=param.device) | extra

    def init_projection(self, param: Tensor, low: LowRank, group: Group) -> State:
        """State of P, which the first step writes."""
        projection = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        return {"projection": projection, "number": stable_number(param, group)}

    def refresh(self, grad: Tensor, low: LowRank, state: State, group: Group) -> None:
        """Write P from the gradient, where one is due."""
        refresh_projection(low.as_rows(state["projection"]), grad, state, group)

    def projection(self, state: State, low: LowRank, dtype: torch.dtype) -> Tensor:
        """P as it is multiplied with."""
        del low, dtype
        projection: Tensor = state["projection"]
        return projection

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Project, update the moments, and add the projected-back direction to the weights."""
        state["step"] += 1
        if group["role"] == Role.MATRIX:
            self._update_matrix(param, grad, state, group)
            return
        count = torch.full((), float(state["step"]), dtype=torch.float32, device=param.device)
        hyper = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        update = partial(adam_update, count=count, decouples=True, **hyper)
        update_in_chunks(param, grad, state, ADAM_MOMENTS, update, chunk_size=group["chunk_size"])

    def _update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        low = low_rank_of(tuple(param.shape), group["rank"], as_it_lies=True)
        self.refresh(grad, low, state, group)
        projection = self.projection(state, low, param.dtype)
        projected = grad @ projection.T if low.is_right else projection.T @ grad
        update = partial(write_adam_direction, step=state["step"], betas=group["betas"], eps=group["eps"])
        # The direction takes the place of the projected gradient.
        update_in_chunks(projected, projected, state, ADAM_MOMENTS, update, chunk_size=group["chunk_size"])
        factors = (projected, projection) if low.is_right else (projection, projected)
        self.add_product(param, *factors, state, group)

    def add_product(self, param: Tensor, left: Tensor, right: Tensor, state: State, group: Group) -> None:
        """One pass over the weights: p <- (1 - lr weight_decay) p - lr scale left right."""
        del state
        lr = group["lr"]
        param.addmm_(left, right, beta=1 - lr * group["weight_decay"], alpha=-lr * group["projection_scale"])


def check_hyper(hyper: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first argument out of range."""
    check_low_rank_hyper(hyper)
    check_non_negative("min_8bit_size", hyper["min_8bit_size"])
    check_positive("chunk_size", hyper["chunk_size"])


@dataclass(frozen=True, slots=True)
class GaLore8bitDeclaration:
    """Bytes of `GaLore8bit`."""

    def treatment(self, role: Role) -> str:
        """Matrices are projected."""
        return "projected, 8-bit moments" if role is Role.MATRIX else "8-bit adamw"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """P of r M s bytes, and 2 r N + 8 ceil(r N / 256) for moments; without P for parameters that are not projected."""
        shape, own = parameter.shape, tuple[StateTensor, ...]()
        if parameter.role is Role.MATRIX:
            low = low_rank_of(parameter.shape, hyper["rank"], as_it_lies=True)
            shape, own = low.low_shape, self.projection_states(parameter, low)
        quantised = is_quantised(math.prod(shape), min_8bit_size=hyper["min_8bit_size"])
        return (*own, *moment_states(shape, ADAM_MOMENTS, quantised=quantised))

    def projection_states(self, parameter: Parameter, low: LowRank) -> tuple[StateTensor, ...]:
        """P in the parameter's dtype."""
        return (StateTensor("projection", low.projection_shape, parameter.dtype),)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """Both codebooks."""
        del hyper
        return shared_maps(ADAM_MOMENTS)

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """Projected gradient and a chunk's workspace; at a refresh what finds P, if that is larger."""
        if parameter.role is not Role.MATRIX:
            return STEP_COUNT_BYTES + moments_workspace(parameter.numel, parameter.dtype, hyper)
        low = low_rank_of(parameter.shape, hyper["rank"], as_it_lies=True)
        step = low.low_numel * parameter.dtype.itemsize
        step += moments_workspace(low.low_numel, parameter.dtype, hyper)
        if phase is Phase.STEADY:
            return step
        finding = refresh_bytes(hyper["subspace"], low, parameter.dtype, is_first=phase is Phase.FIRST)
        return max(step, finding)

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Steps from refresh to refresh."""
        interval: int = hyper["projection_update_interval"]
        return interval


def moments_workspace(numel: int, dtype: torch.dtype, hyper: Hyper) -> int:
    """Bytes that updating the moments of some elements needs."""
    quantised = is_quantised(numel, min_8bit_size=hyper["min_8bit_size"])
    sizes = workspace_bytes(
        numel, dtype, len(ADAM_MOMENTS), quantised=quantised, chunk_size=hyper["chunk_size"]
    )
    return sum(sizes)


DEFAULTS: Mapping[str, Any] = {
    **SUBSPACE_DEFAULTS,
    "min_8bit_size": MIN_8BIT_SIZE,
    "chunk_size": CHUNK_SIZE,
}

ENTRY = OptimizerEntry(
    name="galore_adamw_8bit",
    title="GaLore with 8-bit AdamW",
    summary="AdamW's moments in a low-rank space of the gradient, in 8 bits.",
    paper="Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: GaLore8bit(groups, **hyper),
    defaults=DEFAULTS,
    declaration=GaLore8bitDeclaration(),
    trainer_name="galore_adamw_8bit",
)
