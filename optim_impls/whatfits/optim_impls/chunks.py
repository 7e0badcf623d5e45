"""Pieces of a tensor small enough that the temporaries of one piece stay in cache.

An update of several operators reads each tensor from memory once, not once per operator, and holds temporaries of one
piece, not of the whole parameter. On an EPYC core with 1 MiB of L2 pieces of 2^18 to 2^20 elements are fastest.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["CHUNK", "chunks", "row_chunks", "rows_per_chunk", "scratch_for"]

CHUNK = 2**20
"""Elements of a piece: the larger end of what a CPU's cache likes, so that a GPU gets kernels worth launching."""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, piece by piece: flat where all are contiguous, else some rows at a time."""
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


def scratch_for(param: Tensor) -> Tensor:
    """Uninitialised elements for the largest piece of a parameter, contiguous or not."""
    piece = min(param.numel(), CHUNK)
    if not param.is_contiguous():
        piece = max(piece, rows_per_chunk(param.shape) * (param.numel() // param.shape[0]))
    return torch.empty(piece, dtype=param.dtype, device=param.device)
