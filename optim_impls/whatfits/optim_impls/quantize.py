"""Block-wise 8-bit quantisation with the dynamic map: one byte an element and one fp32 maximum a block.

Tim Dettmers, Mike Lewis, Sam Shleifer, Luke Zettlemoyer: 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861, sections 2.1 (blocks) and 2.2 (dynamic map). Maps, maxima and dequantised values
are bitsandbytes' bit for bit.

Codes are the nearest of the map, as the paper defines them and bitsandbytes' CUDA kernels search them. Its CPU code
(0.50.2) looks a value up in a table with 65,536 equal steps, which is off where the map is finer than a step of 3e-5:
it has no code for zero, for example.

A nearest code is found without a search. The upper 16 bits of an fp32 number (exponent and 7 bits of its fraction)
bound it so closely that at most one boundary between codes lies inside: a table gives the lower code, and one
comparison the rest.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BLOCK_SIZE",
    "MAP_SIZE",
    "Codebook",
    "QuantizeBuffers",
    "codebook",
    "dequantize",
    "quantize",
]

BLOCK_SIZE = 256
MAP_SIZE = 256
_EXPONENTS = 7
_FIRST_KEY = (127 - 25) << 7
"""The key (upper 16 bits) of 2**-25, below every boundary of the maps except those beside zero."""
_LAST_KEY = 127 << 7
"""The key of 1, the largest a value divided by its block's maximum has."""
_LEAST = -0.995
"""Below every value of the signed map but -1, which it lacks, and nearer to -0.993 than that would be to -1."""
_TABLE_SIZE = _LAST_KEY - _FIRST_KEY + 1


class Codebook(NamedTuple):
    """A dynamic map and what finds its nearest codes."""

    values: Tensor  # (256,) fp32, ascending
    boundaries: Tensor  # (256,) fp32: the middle between a value and the next; no number is above the last
    lower_codes: Tensor  # (3201,) uint8: of a key, the code of the smallest number that has it
    is_signed: bool


def codebook_tensors() -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
    """Names, shapes and dtypes of what a codebook holds: 5249 bytes."""
    return (
        ("values", (MAP_SIZE,), torch.float32),
        ("boundaries", (MAP_SIZE,), torch.float32),
        ("lower_codes", (_TABLE_SIZE,), torch.uint8),
    )


@cache
def codebook(device: torch.device, *, is_signed: bool) -> Codebook:
    """The codebook on a device, made once for all optimizers of the process."""
    values = _dynamic_map(is_signed=is_signed)
    middles = (values[1:].double() + values[:-1].double()) / 2
    # A boundary rounded down to fp32 splits fp32 numbers as the exact one does.
    rounded = middles.float()
    rounded = torch.where(
        rounded.double() > middles, torch.nextafter(rounded, torch.tensor(-torch.inf)), rounded
    )
    boundaries = torch.cat([rounded, torch.tensor([torch.inf])])
    keys = torch.arange(_FIRST_KEY, _LAST_KEY + 1, dtype=torch.int32)
    smallest = (keys << 16).view(torch.float32)
    smallest[0] = 0.0
    lower_codes = torch.bucketize(smallest, rounded).to(torch.uint8)
    return Codebook(values.to(device), boundaries.to(device), lower_codes.to(device), is_signed)


def _dynamic_map(*, is_signed: bool) -> Tensor:
    """Zero, one, and for each power of ten the middles of 2**i (unsigned: 2**(i + 1)) equal parts of 0.1 to 1."""
    values = [0.0, 1.0]
    for i in range(_EXPONENTS):
        edges = torch.linspace(0.1, 1, 2 ** (i if is_signed else i + 1) + 1)
        middles = (10 ** (i + 1 - _EXPONENTS) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles
        if is_signed:
            values += [-middle for middle in middles]
    return torch.tensor(sorted(values), dtype=torch.float32)


class QuantizeBuffers(NamedTuple):
    """What `quantize` and `dequantize` work in, as long as what they are given: n elements, a multiple of 256."""

    bounds: Tensor  # (n,) fp32
    keys: Tensor  # (n,) int32
    above: Tensor  # (n,) bool
    negative: Tensor  # (n,) bool
    inverse: Tensor  # (n / 256,) fp32


def quantize(x: Tensor, codes: Tensor, absmax: Tensor, book: Codebook, buffers: QuantizeBuffers) -> None:
    """Write the nearest codes, and the largest magnitude of each block.

    Args:
        x: (n,) fp32, n a multiple of 256; destroyed. An unsigned book takes no negative numbers.
        codes: (n,) uint8, written.
        absmax: (n / 256,) fp32, written.
        book: The map.
        buffers: Written.
    """
    bounds, keys, above, negative, inverse = buffers
    blocks = x.view(-1, BLOCK_SIZE)
    torch.abs(x, out=bounds)
    torch.amax(bounds.view(-1, BLOCK_SIZE), 1, out=absmax)
    # A block of zeros has the maximum 0; with the smallest normal number for it, 0 stays 0.
    torch.clamp(absmax, min=torch.finfo(torch.float32).tiny, out=inverse).reciprocal_()
    blocks.mul_(inverse.unsqueeze(1))
    if book.is_signed:
        _compare(torch.lt, x, 0.0, negative, bounds)
        x.clamp_(_LEAST, 1.0).abs_()
    else:
        x.clamp_(max=1.0)
    torch.bitwise_right_shift(x.view(torch.int32), 16, out=keys)
    keys.clamp_(_FIRST_KEY, _LAST_KEY).sub_(_FIRST_KEY)
    torch.index_select(book.lower_codes, 0, keys, out=codes)
    keys.copy_(codes)
    torch.index_select(book.boundaries, 0, keys, out=bounds)
    _compare(torch.gt, x, bounds, above, x)
    codes.add_(above)
    if book.is_signed:
        # The map mirrors: the code of -v is 254 less that of v. In bytes: all bits flipped, then less one.
        ones = negative.view(torch.uint8).neg_()
        codes.bitwise_xor_(ones).add_(ones)


def _compare(
    compare: Callable[..., Tensor], x: Tensor, other: Tensor | float, flags: Tensor, spare: Tensor
) -> None:
    """Write where a comparison holds. Shapes: (n,); `spare`, fp32, may be x.

    A CPU compares into bool four times as slowly as into fp32, which it then converts.
    """
    if x.device.type == "cpu":
        flags.copy_(compare(x, other, out=spare))
    else:
        compare(x, other, out=flags)


def dequantize(codes: Tensor, absmax: Tensor, x: Tensor, book: Codebook, buffers: QuantizeBuffers) -> None:
    """Write codes' values times their blocks' maxima to x. Shapes as in `quantize`; writes `buffers.keys`."""
    buffers.keys.copy_(codes)
    torch.index_select(book.values, 0, buffers.keys, out=x)
    x.view(-1, BLOCK_SIZE).mul_(absmax.unsqueeze(1))
