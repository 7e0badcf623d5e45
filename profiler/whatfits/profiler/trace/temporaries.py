"""What the ops of a CUDA device allocate beside their outputs, or in another order, op by op.

`device_steps` gives an op's memory steps; ops without a rule allocate their outputs in order and nothing else, as 2,679
single operations recorded on an H100 show (benchmarks/gpu_recordings, `ops`; torch 2.11, CUDA 13). How many of them a rule
reproduces exactly is said in the table; tests hold the figures.

| op | rule | exact |
|---|---|---|
| flash attention, forward | pieces of split keys between the outputs | 42 of 42 |
| flash attention, backward | softmax_d, dq_accum, then dk and dv of all heads for grouped ones | 42 of 42 |
| efficient attention, forward | seeds are the host's | 140 of 140 |
| efficient attention, backward | delta, workspace; in fp32 delta is summed from a product | 140 of 140 |
| cuDNN attention, forward | seeds first, 256 bytes last | 84 of 84 |
| cuDNN attention, backward | one workspace | 84 of 84 |
| math attention: safe softmax | mask of hidden scores, of hidden rows, a scalar | 140 of 140 |
| softmax, backward | product of gradient and output | 3 of 3 |
| embedding, backward | sort of more than 3,072 ids, segments, partial sums | 92 of 92 |
| index_put accumulate | linear index and sort | 23 of 23 |
| reductions | staging and semaphores | 1,280 of 1,280 |
| cumsum | cast of the input; cub scan in one dim | 23 of 23 |
| sort | cub sort above 4,096 elements | 23 of 23 |
| native_dropout | mask before output | 12 of 12 |
| foreach_norm | partial norms before the outputs | 14 of 14 |

Not covered: nonzero, unique, masked_select, multinomial and bincount, whose sizes depend on values, and topk of more than
16,384 values, randperm, convolutions, grouped_mm, linear algebra (its solvers' workspaces).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from whatfits.estimator.profile.scratch import (
    DEFAULT_SMS,
    DEFAULT_THREADS_PER_SM,
    UNSORTED_IDS,
    cudnn_backward_scratch,
    efficient_backward_scratch,
    flash_splits,
    partial_segments,
    radix_sort_scratch,
    scan_scratch,
    unique_scratch,
)
from whatfits.profiler.trace.reductions import reduction_staging
from whatfits.profiler.trace.storages import DeviceStep

__all__ = ["H100", "Gpu", "device_steps", "kernels_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a GPU's kernels size their scratch by: multiprocessors, resident threads of each, compute capability."""

    sms: int
    threads_per_sm: int
    capability: int


H100 = Gpu(sms=DEFAULT_SMS, threads_per_sm=DEFAULT_THREADS_PER_SM, capability=9)
_gpu: ContextVar[Gpu] = ContextVar("gpu", default=H100)


@contextmanager
def kernels_of(gpu: Gpu) -> Iterator[None]:
    """Let `device_steps` speak of this GPU. Assumes: attention kernels as on an H100."""
    token = _gpu.set(gpu)
    try:
        yield
    finally:
        _gpu.reset(token)


Arguments = dict[str, Any]
"""An op's arguments by the names of its schema, defaults filled in."""
Rule = Callable[[Arguments, Any], list[DeviceStep]]
"""Of an op's arguments and its result."""

_SMALL_SORT = 4096
_NORM_CHUNK = 65536


def device_steps(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[DeviceStep]:
    """An op's memory steps on the device, in order."""
    rule = _RULES.get(func.overloadpacket) or _RULES.get(func)
    return [] if rule is None else rule(_by_name(func, args, kwargs), result)


def _by_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    declared = func._schema.arguments
    given = {argument.name: value for argument, value in zip(declared, args, strict=False)}
    return {**{a.name: a.default_value for a in declared}, **given, **kwargs}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _output(number: int) -> DeviceStep:
    return DeviceStep("output", number)


def _take(nbytes: int) -> DeviceStep:
    return DeviceStep("allocate", int(nbytes))


def _free(step: int) -> DeviceStep:
    return DeviceStep("free", step)


def _padded_head(head_dim: int) -> int:
    return _round_up(head_dim, 32 if head_dim <= 128 else 64)


def _flash_forward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Splits n: softmax sums 4 n b a s and outputs 4 n b a s d32 before the seeds; with dropout the seed is made twice.

    Source: flash_api.cpp, mha_fwd and set_params_splitkv.
    """
    batch, heads, seq_len, head_dim = args["query"].shape
    if args["dropout_p"]:
        return [_output(0), _output(1), _take(16), _output(7), _output(6)]
    rows = 4 * flash_splits(batch, heads, seq_len, head_dim) * batch * heads * seq_len
    split = [_take(rows), _take(rows * _padded_head(head_dim))]
    return [_output(0), _output(1), *split, _output(6), _output(7), _free(2), _free(3)]


def _flash_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """softmax_d = 4 b a s128; dq_accum = 4 b s128 a d32; grouped heads: dk = dv = e b s_k a d, freed in reverse.

    s128 = s rounded up to 128; d32 = d rounded up to 32 (64 above 128).

    Source: flash_api.cpp, mha_bwd. Assumes: the non-deterministic kernel.
    """
    query, key = args["query"], args["key"]
    batch, heads, seq_len, head_dim = query.shape
    rows = 4 * batch * heads * _round_up(seq_len, 128)
    steps = [_take(rows), _take(rows * _padded_head(head_dim))]
    if key.shape[1] != heads:
        steps += [_take(query.element_size() * batch * key.shape[2] * heads * head_dim)] * 2
    return steps


def _efficient_forward(_args: Arguments, _result: Any) -> list[DeviceStep]:
    """Seed and offset lie on the host."""
    return [DeviceStep("absent", 2), DeviceStep("absent", 3)]


def _efficient_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Half precision: delta = 4 b a s, workspace. fp32: the product grad x out, its sum, the sum transposed, workspace.

    Source: attention_backward.cu, _efficient_attention_backward.
    """
    query = args["query"]
    batch, heads, seq_len, head_dim = query.shape
    delta = _take(4 * batch * heads * seq_len)
    workspace = _take(efficient_backward_scratch(batch, heads, seq_len, head_dim, query.element_size()))
    if query.element_size() == 2:
        return [delta, workspace, _free(0), _free(1)]
    product = _take(4 * batch * heads * seq_len * args["value"].shape[-1])
    return [product, delta, delta, _free(1), _free(0), workspace, _free(2), _free(5)]


def _cudnn_forward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Seed and offset come first; softmax sums only for a backward; the plan's workspace is 256 bytes."""
    sums = _output(1) if args["compute_log_sumexp"] else DeviceStep("absent", 1)
    return [_output(6), _output(7), _output(0), sums, _take(256)]


def _cudnn_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    query, key = args["query"], args["key"]
    batch, heads, seq_len, head_dim = query.shape
    return [_take(cudnn_backward_scratch(batch, heads, key.shape[1], seq_len, head_dim))]


def _safe_softmax(args: Arguments, result: Any) -> list[DeviceStep]:
    """Which scores are hidden, which rows are all hidden, a zero to put there.

    Source: aten/src/ATen/native/SoftMax.cpp, _safe_softmax.
    """
    scores = result.numel()
    return [
        _output(0),
        _take(scores),
        _take(scores // result.shape[args["dim"]]),
        _take(result.element_size()),
    ]


def _softmax_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """The product of gradient and output. Source: aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out."""
    gradient = args["grad_output"]
    return [_output(0), _take(gradient.numel() * gradient.element_size())]


def _native_dropout(_args: Arguments, _result: Any) -> list[DeviceStep]:
    return [_output(1), _output(0)]


def _embedding_backward(args: Arguments, result: Any) -> list[DeviceStep]:
    """Up to 3,072 ids one kernel adds them; more are sorted, cut into segments of equal ids and pieces of at most 10.

    n ids of e bytes, m = min(n, V) segments, p = n // 10 + m pieces: e n (sorted ids), e n (their places), e n (counted
    up) and the sort's scratch; the output; segment starts e n, their number 8, e n and scratch of the search; pieces per
    segment and their first e m each, scratch of the scan, their number 8, starts e p, sums 4 p round32(d).

    Source: aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu. Assumes: no frequency scaling.
    """
    ids, rows = args["indices"], args["num_weights"]
    count, size = ids.numel(), ids.element_size()
    used = count > UNSORTED_IDS
    each = _take(size * count * used)
    segments = min(count, rows)
    per_segment = _take(size * segments * used)
    pieces = int(partial_segments(count, rows))
    number = _take(8 * used)
    return [
        each,
        each,
        each,
        _take(radix_sort_scratch(count, size, size) * used),
        _free(3),
        _free(2),
        _output(0),
        each,
        number,
        each,
        _take(unique_scratch(count, size) * used),
        _free(10),
        _free(9),
        per_segment,
        per_segment,
        _take(scan_scratch(segments, size) * used),
        _free(15),
        number,
        _take(size * pieces * used),
        _take(4 * pieces * _round_up(result.shape[1], 32) * used),
    ]


def _index_put(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Accumulating: remainder and product for a linear index, which is sorted with its places.

    8 n, 8 n, the first freed, 8 n, 8 n, 8 n and the sort's scratch, over as many bits as count the indexed rows.

    Source: aten/src/ATen/native/cuda/Indexing.cu, index_put_with_sort_kernel. Assumes: one index, of the first dim.
    """
    target = args["self"]
    given = [i for i in args["indices"] if i is not None]
    if not args["accumulate"] or len(given) != 1 or given[0].dtype == torch.bool:
        return []
    count = given[0].numel()
    each = _take(8 * count)
    bits = max(1, (target.shape[0] - 1).bit_length())
    scratch = _take(radix_sort_scratch(count, 8, 8, bits, capability=_gpu.get().capability))
    return [each, each, _free(0), each, each, each, scratch]


def _cumsum(args: Arguments, result: Any) -> list[DeviceStep]:
    """The input cast to the output's dtype; scratch of a scan where the tensor has one dim that is not 1.

    Source: aten/src/ATen/native/ReduceOps.cpp, impl_func_cum_ops; cuda/ScanUtils.cuh, scan_dim.
    """
    count, size = result.numel(), result.element_size()
    cast = size * count if args["self"].dtype != result.dtype else 0
    flat = count == result.shape[args["dim"]]
    return [_output(0), _take(cast), _take(int(scan_scratch(count, size)) if flat else 0)]


def _sort(_args: Arguments, result: Any) -> list[DeviceStep]:
    """One long row: the places, and scratch of a cub sort above 4,096 values.

    Source: aten/src/ATen/native/cuda/Sort.cpp. Assumes: a contiguous tensor of one dim.
    """
    values = result[0]
    if values.ndim != 1 or values.element_size() not in (4, 8):
        return []
    count = values.numel()
    scratch = radix_sort_scratch(count, values.element_size(), 8) if count > _SMALL_SORT else 0
    return [_output(0), _output(1), _take(8 * count), _take(scratch)]


def _foreach_norm(args: Arguments, _result: Any) -> list[DeviceStep]:
    """4 bytes per tensor and chunk of 65,536 elements, as many chunks as the longest tensor has; before the outputs.

    Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda.
    """
    tensors = args["self"]
    chunks = max(-(-t.numel() // _NORM_CHUNK) for t in tensors)
    return [_take(4 * len(tensors) * chunks), *(_output(j) for j in range(len(tensors)))]


def _reduction(accumulator: Callable[[torch.Tensor], int]) -> Rule:
    """Staging and semaphores after the outputs; said even where they are 0 in a sum over all rows, which needs them."""

    def rule(args: Arguments, _result: Any) -> list[DeviceStep]:
        tensor, dims = args["self"], args.get("dim")
        if not tensor.ndim or not tensor.numel():
            return []
        chosen = [dims] if isinstance(dims, int) else dims or range(tensor.ndim)
        (staging, semaphores), over_rows = reduction_staging(
            tensor, chosen, accumulator(tensor), _gpu.get().sms, _gpu.get().threads_per_sm
        )
        return [_take(staging), _take(semaphores)] if staging or over_rows else []

    return rule


def _sum(args: Arguments, result: Any) -> list[DeviceStep]:
    """Sums in another dtype cast the input first, but for half precision in fp32.

    Source: aten/src/ATen/native/ReduceOpsUtils.h, make_reduction.
    """
    tensor, steps = args["self"], _IN_OWN_DTYPE(args, result)
    direct = tensor.element_size() == 2 and result.dtype == torch.float32
    if tensor.dtype == result.dtype or direct or not tensor.numel():
        return steps
    return [_output(0), _take(result.element_size() * tensor.numel()), *steps]


def _index(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Several indices of unlike strides are made contiguous first.

    Source: aten/src/ATen/native/TensorAdvancedIndexing.cpp, AdvancedIndex.
    """
    given = torch.broadcast_tensors(*(i for i in args["indices"] if i is not None))
    if len({i.stride() for i in given}) == 1 or any(i.dtype == torch.bool for i in given):
        return []
    copies = [_take(0 if i.is_contiguous() else i.element_size() * i.numel()) for i in given]
    return [*copies, _output(0)]


def _sum_bytes(tensor: torch.Tensor) -> int:
    return 4 if tensor.is_floating_point() and tensor.element_size() <= 4 else 8


_ATEN = torch.ops.aten
_IN_OWN_DTYPE = _reduction(_sum_bytes)
_EXTREME = _reduction(torch.Tensor.element_size)
_TRUTH = _reduction(lambda _tensor: 1)
_WITH_INDEX = _reduction(lambda _tensor: 16)
_RULES: dict[Any, Rule] = {
    _ATEN._scaled_dot_product_flash_attention: _flash_forward,
    _ATEN._scaled_dot_product_flash_attention_backward: _flash_backward,
    _ATEN._scaled_dot_product_efficient_attention: _efficient_forward,
    _ATEN._scaled_dot_product_efficient_attention_backward: _efficient_backward,
    _ATEN._scaled_dot_product_cudnn_attention: _cudnn_forward,
    _ATEN._scaled_dot_product_cudnn_attention_backward: _cudnn_backward,
    _ATEN._safe_softmax: _safe_softmax,
    _ATEN._softmax_backward_data: _softmax_backward,
    _ATEN.native_dropout: _native_dropout,
    _ATEN.embedding_dense_backward: _embedding_backward,
    _ATEN.index_put: _index_put,
    _ATEN.index_put_: _index_put,
    _ATEN._index_put_impl_: _index_put,
    _ATEN.index.Tensor: _index,
    _ATEN.cumsum: _cumsum,
    _ATEN.sort: _sort,
    _ATEN._foreach_norm: _foreach_norm,
    _ATEN.sum: _sum,
    _ATEN.mean: _sum,
    _ATEN.norm: _IN_OWN_DTYPE,
    _ATEN.linalg_vector_norm: _IN_OWN_DTYPE,
    _ATEN.amax: _EXTREME,
    _ATEN.amin: _EXTREME,
    _ATEN.max.default: _EXTREME,
    _ATEN.min.default: _EXTREME,
    _ATEN.any: _TRUTH,
    _ATEN.all: _TRUTH,
    _ATEN.max.dim: _WITH_INDEX,
    _ATEN.min.dim: _WITH_INDEX,
    _ATEN.argmax: _WITH_INDEX,
    _ATEN.argmin: _WITH_INDEX,
}
