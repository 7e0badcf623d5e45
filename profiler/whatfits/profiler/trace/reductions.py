"""Staging that CUDA's reduction kernel needs for a reduction of given strides: what `TensorIterator` makes of the dims.

Source: aten/src/ATen/TensorIterator.cpp, reorder_dimensions and coalesce_dimensions; native/cuda/Reduce.cuh,
setReduceConfig.
"""

from collections.abc import Sequence
from functools import cmp_to_key, partial
from math import gcd

import torch

__all__ = ["reduction_of"]

_WIDEST_VECTOR = 4


def reduction_of(
    tensor: torch.Tensor, dims: Sequence[int], accumulator_bytes: int
) -> tuple[tuple[int, ...], bool]:
    """Arguments of the formulas `staging` and `semaphores`, and whether the sum runs over all dims but the last.

    Assumes: fewer than 2**31 elements.
    """
    sizes, strides, reduced = _iterated(tensor, {d % tensor.ndim for d in dims})
    inputs = outputs = 1
    for size, is_reduced in zip(sizes, reduced, strict=True):
        inputs, outputs = (inputs * size, outputs) if is_reduced else (inputs, outputs * size)
    num_reduced = sum(reduced)
    fastest = num_reduced == len(sizes) or (num_reduced > 0 and strides[0] < strides[num_reduced])
    over_rows = not fastest and num_reduced == 1 and len(sizes) == 2
    flat, multiple = False, 1
    if sizes and fastest:
        flat = len(sizes) == 1 and strides[0] == 1
    elif sizes and strides[num_reduced] == 1:
        others = [s for j, s in enumerate(strides) if j != num_reduced]
        multiple = gcd(_WIDEST_VECTOR, sizes[num_reduced], *others)
    return (outputs, inputs, int(fastest), int(flat), accumulator_bytes, multiple), over_rows


def _iterated(tensor: torch.Tensor, dims: set[int]) -> tuple[list[int], list[int], list[bool]]:
    """Sizes, strides and whether reduced of the dims the kernel iterates: fastest first, reduced ones in front, merged."""
    order = [d for d in reversed(range(tensor.ndim)) if tensor.shape[d] != 1]
    order.sort(key=cmp_to_key(partial(_compare, tensor, dims)))
    sizes: list[int] = []
    strides: list[int] = []
    reduced: list[bool] = []
    for d in order:
        size, stride = tensor.shape[d], tensor.stride(d)
        if reduced and reduced[-1] == (d in dims) and strides[-1] * sizes[-1] == stride:
            sizes[-1] *= size
            continue
        sizes.append(size)
        strides.append(stride)
        reduced.append(d in dims)
    return sizes, strides, reduced


def _compare(tensor: torch.Tensor, dims: set[int], a: int, b: int) -> int:
    if (a in dims) != (b in dims):
        return -1 if a in dims else 1
    first, second = tensor.stride(a), tensor.stride(b)
    if not first or not second or first == second:
        return 0
    return -1 if first < second else 1
