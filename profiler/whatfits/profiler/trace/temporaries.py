"""What the ops of a CUDA device allocate beside their outputs, or in another order, op by op.

`device_steps` gives an op's memory steps; ops without a rule allocate their outputs in order and nothing else. The rules
are held to single operations recorded on an H100 (benchmarks/gpu_recordings, `ops`; torch 2.11, CUDA 13): of 2,679, the
2,507 that run on `meta` and are covered come out exactly, event for event.

| op | rule | exact |
|---|---|---|
| flash attention, forward | pieces of split keys between the outputs | 42 of 42 |
| flash attention, backward | softmax_d, dq_accum, then dk and dv of all heads for grouped ones | 42 of 42 |
| efficient attention, forward | seeds are the host's; fp32 sums for heads above 128 | 140 of 140 |
| efficient attention, backward | delta, workspace; in fp32 delta is summed from a product | 140 of 140 |
| cuDNN attention, forward | seeds first, 256 bytes last | 84 of 84 |
| cuDNN attention, backward | one workspace | 84 of 84 |
| math attention, both ways: safe softmax | mask of hidden scores, of hidden rows, a scalar | 280 of 280 |
| softmax | backward: product of gradient and output | 6 of 6 |
| embedding, backward | sort of more than 3,072 ids, segments, partial sums | 92 of 92 |
| index, index_put, gather, max, index_select | indices made contiguous; accumulating: linear index and sort | 41 of 41 |
| reductions | cast, staging and semaphores | 1,287 of 1,287 |
| cumsum, sort, topk of rows | cast and scan; places counted up and, above 4,096, a cub sort | 98 of 98 |
| foreach_norm | partial norms before the outputs | 14 of 14 |
| native_dropout | mask before output | 24 of 24 |
| linear, bmm, layer_norm, rms_norm, cross_entropy, histc, index_add | nothing of their own | 114 of 114 |

Not covered: nonzero, unique, masked_select, multinomial, bincount and one_hot, whose sizes depend on values or which
`meta` takes apart otherwise; topk of one row above 16,384 values, randperm, convolutions, grouped_mm, linear algebra.
"""

from collections.abc import Callable
from typing import Any

import torch

from whatfits.profiler.trace.attention_scratch import (
    cudnn_backward,
    cudnn_forward,
    efficient_backward,
    efficient_forward,
    flash_backward,
    flash_forward,
    safe_softmax,
    softmax_backward,
)
from whatfits.profiler.trace.index_scratch import cumsum, embedding_backward, index, index_put, sort
from whatfits.profiler.trace.memory_steps import Arguments, Rule, output, scratch, take
from whatfits.profiler.trace.reductions import reduction_of
from whatfits.profiler.trace.storages import DeviceStep

__all__ = ["device_steps"]

_NORM_CHUNK = 65536


def device_steps(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[DeviceStep]:
    """An op's memory steps on the device, in order."""
    rule = _RULES.get(func.overloadpacket) or _RULES.get(func)
    return [] if rule is None else rule(_by_name(func, args, kwargs), result)


def _by_name(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    declared = func._schema.arguments
    given = {argument.name: value for argument, value in zip(declared, args, strict=False)}
    return {**{a.name: a.default_value for a in declared}, **given, **kwargs}


def _native_dropout(_args: Arguments, _result: Any) -> list[DeviceStep]:
    return [output(1), output(0)]


def _foreach_norm(args: Arguments, _result: Any) -> list[DeviceStep]:
    """4 bytes per tensor and chunk of 65,536 elements, as many chunks as the longest tensor has; before the outputs.

    Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda.
    """
    tensors = args["self"]
    chunks = max(-(-t.numel() // _NORM_CHUNK) for t in tensors)
    return [take(4 * len(tensors) * chunks), *(output(j) for j in range(len(tensors)))]


def _reduction(accumulator: Callable[[torch.Tensor], int]) -> Rule:
    """Staging and semaphores after the outputs; said even where they are 0 in a sum over all rows, which needs them."""

    def rule(args: Arguments, _result: Any) -> list[DeviceStep]:
        tensor, dims = args["self"], args.get("dim")
        if not tensor.ndim or not tensor.numel():
            return []
        chosen = [dims] if isinstance(dims, int) else dims or range(tensor.ndim)
        arguments, over_rows = reduction_of(tensor, chosen, accumulator(tensor))
        return [scratch(name, *arguments, maybe=not over_rows) for name in ("staging", "semaphores")]

    return rule


def _sum(args: Arguments, result: Any) -> list[DeviceStep]:
    """Sums in another dtype cast the input first, but for half precision in fp32.

    Source: aten/src/ATen/native/ReduceOpsUtils.h, make_reduction.
    """
    tensor, steps = args["self"], _IN_OWN_DTYPE(args, result)
    direct = tensor.element_size() == 2 and result.dtype == torch.float32
    if tensor.dtype == result.dtype or direct or not tensor.numel():
        return steps
    return [output(0), take(result.element_size() * tensor.numel()), *steps]


def _sum_bytes(tensor: torch.Tensor) -> int:
    return 4 if tensor.is_floating_point() and tensor.element_size() <= 4 else 8


_ATEN = torch.ops.aten
_IN_OWN_DTYPE = _reduction(_sum_bytes)
_EXTREME = _reduction(torch.Tensor.element_size)
_TRUTH = _reduction(lambda _tensor: 1)
_WITH_INDEX = _reduction(lambda _tensor: 16)
_RULES: dict[Any, Rule] = {
    _ATEN._scaled_dot_product_flash_attention: flash_forward,
    _ATEN._scaled_dot_product_flash_attention_backward: flash_backward,
    _ATEN._scaled_dot_product_efficient_attention: efficient_forward,
    _ATEN._scaled_dot_product_efficient_attention_backward: efficient_backward,
    _ATEN._scaled_dot_product_cudnn_attention: cudnn_forward,
    _ATEN._scaled_dot_product_cudnn_attention_backward: cudnn_backward,
    _ATEN._safe_softmax: safe_softmax,
    _ATEN._softmax_backward_data: softmax_backward,
    _ATEN.native_dropout: _native_dropout,
    _ATEN.embedding_dense_backward: embedding_backward,
    _ATEN.index_put: index_put,
    _ATEN.index_put_: index_put,
    _ATEN._index_put_impl_: index_put,
    _ATEN.index.Tensor: index,
    _ATEN.cumsum: cumsum,
    _ATEN.sort: sort,
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
