"""Q-GaLore: GaLore with 8-bit moments, a projection in 4 bits, and weights that can be 8-bit integers.

Zhenyu Zhang, Ajay Jaiswal, Lu Yin, Shiwei Liu, Jiawei Zhao, Yuandong Tian, Zhangyang Wang: Q-GaLore: Quantized GaLore
with INT4 Projection and Layer-Adaptive Low-Rank Gradients, arXiv:2407.08296, Algorithm 1 (sections 3.2 lazy subspaces,
3.3 INT4 projection, 3.4 stochastic rounding of INT8 weights). Weights are integers where `quantize_linears` made them.

Lazy subspaces: a layer's interval between SVDs doubles once its subspace stayed alike (a cosine of at least 0.4) at
several refreshes in a row.

Differs from the released code: two 4-bit codes share a byte, where that keeps one in each; likeness is the mean cosine
of all pairs of singular vectors, as the paper has it, where that looks at the first pair; vectors' signs, which are free,
do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.affine import (
    Affine,
    affine_shapes,
    dequantize_affine,
    pack_nibbles,
    quantize_affine,
    unpack_nibbles,
)
from whatfits.optim_impls.base import Group, State, check_fraction, check_positive
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
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
from whatfits.optim_impls.projection import PROJECTORS, LowRank, low_rank_of, refresh_bytes, seeded_generator

__all__ = ["ENTRY", "QGaLore", "QGaLoreDeclaration"]

PROJECTION_GROUP = 256
PROJECTION_LEVELS = 15


def likeness(old: Tensor, new: Tensor, *, is_right: bool) -> float:
    """Mean magnitude of the cosines of old and new directions, from 0 to 1. Shapes: as P, fp32."""
    side = 1 if is_right else 0
    lengths = torch.linalg.vector_norm(old, dim=side).mul_(torch.linalg.vector_norm(new, dim=side))
    cosines = (old * new).sum(side).div_(lengths.clamp_(min=1e-12))
    return float(cosines.abs_().mean())


class QGaLore(GaLore8bit):
    """Q-GaLore for groups of role `matrix`, 8-bit AdamW for the others."""

    def __init__(self, params: Any, **hyper: Any) -> None:  # the defaults' names and types
        check_fraction("likeness_threshold", hyper["likeness_threshold"])
        check_positive("alike_refreshes", hyper["alike_refreshes"])
        super().__init__(params, **hyper)

    def init_projection(self, param: Tensor, low: LowRank, group: Group) -> State:
        """P in 4 bits, and what its refreshes depend on, as numbers."""
        packed, scale, zero = projection_tensors(low)
        state: State = {
            name: torch.empty(length, dtype=dtype, device=param.device)
            for name, length, dtype in (packed, scale, zero)
        }
        return state | {
            "interval": group["projection_update_interval"],
            "next_refresh": 1,
            "alike": 0,
            "number": stable_number(param, group),
        }

    def refresh(self, grad: Tensor, low: LowRank, state: State, group: Group) -> None:
        """Write P where a refresh is due, and set when the next one is."""
        if state["step"] != state["next_refresh"]:
            return
        follows = group["subspace"] == "warm" and state["step"] > 1
        old = self.projection(state, low, torch.float32) if follows else None
        # Steps below 0: those above are the draws of stochastic rounding.
        generator = seeded_generator(group["seed"], state["number"], -state["step"], grad.device)
        last = None if old is None else low.as_rows(old)
        found = PROJECTORS[group["subspace"]](grad, low.rank, generator, last=last)
        directions = low.as_rows(found).clone(memory_format=torch.contiguous_format)
        del found, last
        if state["step"] > 1:
            old = self.projection(state, low, torch.float32) if old is None else old
            is_alike = likeness(old, directions, is_right=low.is_right) >= group["likeness_threshold"]
            del old
            state["alike"] = state["alike"] + 1 if is_alike else 0
            if state["alike"] >= group["alike_refreshes"]:
                state["interval"], state["alike"] = 2 * state["interval"], 0
        state["next_refresh"] = state["step"] + state["interval"]
        codes = torch.empty(directions.numel(), dtype=torch.uint8, device=grad.device)
        out = Affine(codes, state["projection_scale"], state["projection_zero"])
        quantize_affine(directions, out, group_size=PROJECTION_GROUP, levels=PROJECTION_LEVELS)
        pack_nibbles(codes, state["projection"])

    def projection(self, state: State, low: LowRank, dtype: torch.dtype) -> Tensor:
        """P from its 4 bits."""
        packed = state["projection"]
        codes = torch.empty(low.rank * low.short_side, dtype=torch.uint8, device=packed.device)
        unpack_nibbles(packed, codes)
        out = torch.empty(low.projection_shape, dtype=dtype, device=packed.device)
        quantised = Affine(codes, state["projection_scale"], state["projection_zero"])
        dequantize_affine(quantised, out, group_size=PROJECTION_GROUP)
        return out

    def add_product(self, param: Tensor, left: Tensor, right: Tensor, state: State, group: Group) -> None:
        """As GaLore; integers are changed piece by piece and rounded stochastically."""
        weight = int8_of(param)
        if weight is None:
            super().add_product(param, left, right, state, group)
            return
        lr, rate = group["lr"], group["lr"] * group["projection_scale"]

        def write(values: Tensor, scratch: Tensor, rows: slice) -> None:
            values.mul_(1 - lr * group["weight_decay"])
            product = scratch.view(-1).view(left.dtype)[: values.numel()].view(values.shape)
            values.sub_(torch.mm(left[rows], right, out=product), alpha=rate)

        generator = seeded_generator(group["seed"], state["number"], state["step"], param.device)
        add_to_int8(weight, write, generator)


def projection_tensors(low: LowRank) -> tuple[tuple[str, int, torch.dtype], ...]:
    """Names, lengths and dtypes of P in 4 bits: ceil(r M / 2) + 5 ceil(r M / 256) bytes."""
    numel = low.rank * low.short_side
    _, (groups, scale_dtype), (_, zero_dtype) = affine_shapes(numel, PROJECTION_GROUP)
    return (
        ("projection", -(-numel // 2), torch.uint8),
        ("projection_scale", groups, scale_dtype),
        ("projection_zero", groups, zero_dtype),
    )


@dataclass(frozen=True, slots=True)
class QGaLoreDeclaration(GaLore8bitDeclaration):
    """Bytes of `QGaLore`, for weights in a float dtype; integers need `int8_weights.int8_update_bytes` more."""

    def projection_states(self, parameter: Parameter, low: LowRank) -> tuple[StateTensor, ...]:
        """P in 4 bits."""
        del parameter
        return tuple(StateTensor(name, (length,), dtype) for name, length, dtype in projection_tensors(low))

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """As GaLore's, with P in the parameter's dtype; a refresh quantises the SVD's vectors."""
        if parameter.role is not Role.MATRIX:
            return super(QGaLoreDeclaration, self).transient_bytes(parameter, hyper, phase)
        low = low_rank_of(parameter.shape, hyper["rank"], as_it_lies=True)
        numel, itemsize = low.rank * low.short_side, parameter.dtype.itemsize
        unpacking = numel * (1 + itemsize)
        step = numel * itemsize + low.low_numel * itemsize
        step += moments_workspace(low.low_numel, parameter.dtype, hyper)
        steady = max(unpacking, step)
        if phase is Phase.STEADY:
            return steady
        # Old and new directions and their products in fp32, with two numbers a direction.
        comparing = 12 * numel + 8 * low.rank if phase is Phase.REFRESH else 0
        finding = refresh_bytes(hyper["subspace"], low, parameter.dtype, is_first=phase is Phase.FIRST)
        followed = 4 * numel if hyper["subspace"] == "warm" and phase is Phase.REFRESH else 0
        return max(steady, finding + followed, comparing)


DEFAULTS: Mapping[str, Any] = {
    **GALORE_DEFAULTS,
    "likeness_threshold": 0.4,
    "alike_refreshes": 5,
}

ENTRY = OptimizerEntry(
    name="q_galore",
    title="Q-GaLore",
    summary="GaLore with 8-bit moments, 4-bit projections, fewer SVDs, and weights that can be 8-bit integers.",
    paper="Zhang et al.: Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients, "
    "arXiv:2407.08296",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: QGaLore(groups, **hyper),
    defaults=DEFAULTS,
    declaration=QGaLoreDeclaration(),
    capabilities=Capabilities(),
    paper_differences="Likeness of subspaces is the mean cosine of all pairs of singular vectors, as in the paper; the "
    "released code looks at the first pair.",
)
