"""What sorting, scanning and indexing kernels allocate beside their outputs."""

from typing import Any

import torch

from whatfits.estimator.profile.formulas import LONG_SORT, round_up
from whatfits.profiler.trace.memory_steps import Arguments, current_gpu, free, output, scratch, take
from whatfits.profiler.trace.storages import DeviceStep

__all__ = ["cumsum", "embedding_backward", "index", "index_put", "sort"]


def embedding_backward(args: Arguments, result: Any) -> list[DeviceStep]:
    """Up to 3,072 ids one kernel adds them; more are sorted, cut into segments of equal ids and pieces of at most 10.

    n ids of e bytes, m = min(n, V) segments, p = n // 10 + m pieces: e n (sorted ids), e n (their places), e n (counted
    up) and the sort's scratch; the output; segment starts e n, their number 8, e n and scratch of the search; pieces per
    segment and their first e m each, scratch of the scan, their number 8, starts e p, sums 4 p round32(d).

    Source: aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu. Assumes: no frequency scaling.
    """
    ids, rows = args["indices"], args["num_weights"]
    count, size = ids.numel(), ids.element_size()
    each = scratch("sorted", count, size)
    per_segment = scratch("segments", count, rows, size)
    number = scratch("sorted_once", count, 8)
    return [
        each,
        each,
        each,
        scratch("sort_scratch", count, size, current_gpu().capability),
        free(3),
        free(2),
        output(0),
        each,
        number,
        each,
        scratch("unique_scratch", count, size),
        free(10),
        free(9),
        per_segment,
        per_segment,
        scratch("segment_scratch", count, rows, size),
        free(15),
        number,
        scratch("pieces", count, rows, size),
        scratch("pieces", count, rows, 4 * round_up(result.shape[1], 32)),
    ]


def index_put(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Accumulating: remainder and product for a linear index, which is sorted with its places.

    8 n, 8 n, the first freed, 8 n, 8 n, 8 n and the sort's scratch, over as many bits as count the indexed rows.

    Source: aten/src/ATen/native/cuda/Indexing.cu, index_put_with_sort_kernel. Assumes: one index, of the first dim.
    """
    target = args["self"]
    given = [i for i in args["indices"] if i is not None]
    if not args["accumulate"] or len(given) != 1 or given[0].dtype == torch.bool:
        return []
    count = given[0].numel()
    each = take(8 * count)
    sort_scratch = scratch("index_sort", count, target.shape[0], current_gpu().capability)
    return [each, each, free(0), each, each, each, sort_scratch]


def cumsum(args: Arguments, result: Any) -> list[DeviceStep]:
    """The input cast to the output's dtype; scratch of a scan where the tensor has one dim that is not 1.

    Source: aten/src/ATen/native/ReduceOps.cpp, impl_func_cum_ops; cuda/ScanUtils.cuh, scan_dim.
    """
    count, size = result.numel(), result.element_size()
    cast = size * count if args["self"].dtype != result.dtype else 0
    flat = count == result.shape[args["dim"]]
    return [output(0), take(cast), scratch("scan", count, size) if flat else take(0)]


def sort(args: Arguments, result: Any) -> list[DeviceStep]:
    """The places, counted up once for all rows; a row of more than 4,096 values is sorted by cub with its places.

    Source: aten/src/ATen/native/cuda/Sort.cpp, sort_cuda_kernel. Assumes: one row where they are long.
    """
    values = result[0]
    dim = args["dim"] if values.ndim else 0
    count = values.shape[dim] if values.ndim else 1
    places = [output(0), output(1), take(8 * count)]
    by_cub = values.numel() == count and values.element_size() in (4, 8)
    if not by_cub:
        return places if count <= LONG_SORT else []
    return [*places, scratch("row_sort", count, values.element_size(), current_gpu().capability, maybe=True)]


def index(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Several indices of unlike strides are made contiguous first.

    Source: aten/src/ATen/native/TensorAdvancedIndexing.cpp, AdvancedIndex.
    """
    given = torch.broadcast_tensors(*(i for i in args["indices"] if i is not None))
    if len({i.stride() for i in given}) == 1 or any(i.dtype == torch.bool for i in given):
        return []
    copies = [take(0 if i.is_contiguous() else i.element_size() * i.numel()) for i in given]
    return [*copies, output(0)]
