"""Pieces of a tensor small enough that the temporaries of one piece stay in cache.

An update of several operators reads each tensor from memory once, not once per operator, and holds temporaries of one
piece, not of the whole parameter. On an EPYC core with 1 MiB of L2 pieces of 2^18 to 2^20 elements are fastest.
"""

from collections.abc import Iterator
from math import gcd

import torch
from torch import Tensor

__all__ = ["CHUNK", "chunks", "row_chunks", "rows_at_a_time", "rows_per_chunk", "scratch_for", "signs_into"]

CHUNK = 2**20
"""Elements of a piece: the larger end of what a CPU's cache likes, so that a GPU gets kernels worth launching."""
FLOAT_ELEMENTS = 2**18
"""Elements of a tensor in fewer bits that are in float at a time, at least one row of whole groups."""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, piece by piece: flat where all are contiguous, else some rows at a time.

    Of sharded tensors (FSDP2's DTensor) they are views of this rank's shards.
    """
    tensors = tuple(_local(tensor) for tensor in tensors)
    if all(tensor.is_contiguous() for tensor in tensors):
        yield from zip(*(torch.split(tensor.view(-1), CHUNK) for tensor in tensors), strict=True)
    else:
        yield from row_chunks(*tensors)


def row_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors with the same number of rows, as many rows at a time as the first has in a piece."""
    rows = rows_per_chunk(tensors[0].shape)
    yield from zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def rows_per_chunk(shape: tuple[int, ...]) -> int:
    """Rows of a piece: at least one."""
    row = 1
    for size in shape[1:]:
        row *= size
    return max(1, min(shape[0], CHUNK // max(1, row)))


def rows_at_a_time(shape: tuple[int, ...], group_size: int = 1) -> int:
    """Rows of an update's piece: of whole groups, and of about 2^18 elements, which are converted to float at a time."""
    rows, columns = shape
    unit = group_size // gcd(columns, group_size)
    return min(rows, max(1, FLOAT_ELEMENTS // (columns * unit)) * unit)


def scratch_for(param: Tensor) -> Tensor:
    """Uninitialised elements for the largest piece of a parameter, contiguous or not."""
    param = _local(param)
    piece = min(param.numel(), CHUNK)
    if not param.is_contiguous():
        piece = max(piece, rows_per_chunk(param.shape) * (param.numel() // param.shape[0]))
    return torch.empty(piece, dtype=param.dtype, device=param.device)


def signs_into(out: Tensor, values: Tensor, *, negative_zeros: bool) -> float:
    """Write multiples of the signs of values to `out`, which may be `values`; returns what to multiply by to have signs.

    On a CPU the sign of bf16 costs more than the rest of an update. There it is taken of the bits as whole numbers, which
    have the same sign: -1, 0 and 1 shifted by 14 bits are the bit patterns of -2.0, 0.0 and 2.0. The exception is -0.0:
    say whether there may be any.
    """
    if values.dtype is torch.bfloat16 and values.device.type == "cpu":
        if negative_zeros:
            values = torch.add(values, 0.0, out=out)
        torch.clamp(values.view(torch.int16), -1, 1, out=out.view(torch.int16)).mul_(1 << 14)
        return 0.5
    torch.sign(values, out=out)
    return 1.0


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, a plain tensor as it is; torch.distributed stays out of imports."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
