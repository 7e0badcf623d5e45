"""Unsigned integers with a scale and a zero point per group: 8 bits for weights, 4 bits for projections.

Zhenyu Zhang, Ajay Jaiswal, Lu Yin, Shiwei Liu, Jiawei Zhao, Yuandong Tian, Zhangyang Wang: Q-GaLore: Quantized GaLore
with INT4 Projection and Layer-Adaptive Low-Rank Gradients, arXiv:2407.08296, section 3.1 (uniform quantisation) and 3.4
(stochastic rounding).

A group's range is widened to hold zero, so that its zero point is a code of its own and zero stays zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Affine",
    "affine_shapes",
    "dequantize_affine",
    "pack_nibbles",
    "quantize_affine",
    "unpack_nibbles",
]


class Affine(NamedTuple):
    """Codes of e elements in groups of consecutive ones; the last group may be shorter."""

    codes: Tensor  # (e,) uint8
    scale: Tensor  # (groups,) fp32
    zero: Tensor  # (groups,) uint8


def affine_shapes(numel: int, group_size: int) -> tuple[tuple[int, torch.dtype], ...]:
    """Length and dtype of codes, scale and zero point: e + 5 ceil(e / group) bytes."""
    groups = -(-numel // group_size)
    return ((numel, torch.uint8), (groups, torch.float32), (groups, torch.uint8))


def quantize_affine(
    values: Tensor, out: Affine, *, group_size: int, levels: int, noise: Tensor | None = None
) -> None:
    """Write codes, scales and zero points.

    Args:
        values: (e,) fp32; destroyed.
        out: Written.
        group_size: Elements that share a scale.
        levels: The largest code: 255 or 15.
        noise: (e,) fp32 in [0, 1) for stochastic rounding: a value between two codes takes the upper one with a
            probability equal to its distance from the lower. Without it, the nearest.
    """
    values = values.view(-1)
    whole = values.numel() // group_size * group_size
    for part, groups in (
        (slice(0, whole), slice(0, whole // group_size)),
        (slice(whole, None), slice(whole // group_size, None)),
    ):
        if values[part].numel():
            rows = values[part].view(out.scale[groups].numel(), -1)
            _quantize_rows(
                rows,
                Affine(out.codes.view(-1)[part].view(rows.shape), out.scale[groups], out.zero[groups]),
                levels,
            )
            if noise is None:
                rows.add_(0.5)
            else:
                rows.add_(noise.view(-1)[part].view(rows.shape))
            rows.floor_().clamp_(0, levels)
            out.codes.view(-1)[part].view(rows.shape).copy_(rows)


def _quantize_rows(rows: Tensor, out: Affine, levels: int) -> None:
    """Write scale and zero point of each row, and turn its values into real-valued codes."""
    low, high = rows.amin(1).clamp_(max=0), rows.amax(1).clamp_(min=0)
    torch.sub(high, low, out=out.scale)
    # Where all is zero, any scale will do.
    out.scale.div_(levels).clamp_(min=torch.finfo(torch.float32).tiny)
    out.zero.copy_(low.div_(out.scale).neg_().round_())
    rows.div_(out.scale.unsqueeze(1)).add_(out.zero.unsqueeze(1))


def dequantize_affine(quantised: Affine, out: Tensor, *, group_size: int) -> None:
    """Write (code - zero) scale. Shapes: out (e,) or the weight's, any float dtype."""
    flat, codes = out.view(-1), quantised.codes.view(-1)
    flat.copy_(codes)
    whole = flat.numel() // group_size * group_size
    if whole:
        groups = slice(0, whole // group_size)
        rows = flat[:whole].view(-1, group_size)
        rows.sub_(quantised.zero[groups].unsqueeze(1)).mul_(quantised.scale[groups].unsqueeze(1))
    if whole < flat.numel():
        flat[whole:].sub_(quantised.zero[-1]).mul_(quantised.scale[-1])


def pack_nibbles(codes: Tensor, out: Tensor) -> None:
    """Two codes of 0 to 15 a byte, the first of a pair in the low half. Shapes: codes (e,), out (ceil(e / 2),)."""
    half = codes.numel() // 2
    out.copy_(codes[::2])
    out[:half].bitwise_or_(codes[1::2] << 4)


def unpack_nibbles(packed: Tensor, out: Tensor) -> None:
    """The codes of `pack_nibbles`. Shapes: packed (ceil(e / 2),), out (e,) uint8."""
    torch.bitwise_and(packed, 15, out=out[::2])
    torch.bitwise_right_shift(packed[: out.numel() // 2], 4, out=out[1::2])
