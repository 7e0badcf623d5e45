"""Where a trace on `meta` differs from a run on a CUDA device, and the rule that removes each difference.

| difference | rule here | source |
|---|---|---|
| `meta` tensors always take SDPA's math path | call the flash kernel's op directly | aten/src/ATen/native/transformers/attention.cpp |
| under a dispatch mode autograd adds gradients that meet at a fan-in out of place | in place where the device would | torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace` |
| flash backward's scratch tensors are allocated inside the kernel's wrapper | listed by `flash_backward_temporaries` | aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, `mha_bwd` (rounding as in FlashAttention 2) |
| a boolean read back from the device (`.item()`) has no value on `meta` | answered True: no padding and no packed sequences | transformers/masking_utils.py |
| transformers treats `meta` as tracing and then builds a mask | `is_tracing` answers False | transformers/masking_utils.py |

Not yet listed here, so not in the traces: cuBLAS workspaces (added by the estimator's step timeline), reduction
staging buffers, the sort buffers of the embedding's backward, and flash forward's split-KV accumulators for
workloads too small to fill the device.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
import transformers.masking_utils

from whatfits.profiler.trace.storages import DeviceStep, StorageRecorder, running_node

_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
_aten = torch.ops.aten
_IN_PLACE_IN_FORMULAS = {
    _aten.scatter.src: _aten.scatter_.src,
    _aten.scatter.value: _aten.scatter_.value,
    _aten.scatter_add.default: _aten.scatter_add_.default,
    _aten.index_put.default: _aten.index_put_.default,
    _aten._index_put_impl.default: _aten._index_put_impl_.default,
}
"""Ops that backward formulas apply to a tensor of their own making, with what a device runs instead."""
_USES_OF_AN_UNSHARED_TENSOR = 4
"""Tensor references seen from a dispatch mode when the engine's buffer holds the only other one."""
_USES_OF_AN_UNSHARED_STORAGE = 2


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001
) -> torch.Tensor:
    """Stand in for `F.scaled_dot_product_attention` where the device would choose the flash kernel.

    Grouped key and value heads reach the kernel unexpanded, as on the device.

    Raises:
        NotImplementedError: a mask or a value of another head dim was passed, which the flash kernel does not take.
    """
    if attn_mask is not None:
        raise NotImplementedError("the flash kernel takes no mask; trace this model with another kernel")
    head_dim = query.shape[-1]
    if head_dim != value.shape[-1]:
        raise NotImplementedError(
            f"the flash kernel takes one head dim, not {head_dim} and {value.shape[-1]}"
        )
    if head_dim % 8:
        padded = [F.pad(t, (0, _round_up(head_dim, 8) - head_dim)) for t in (query, key, value)]
        scale = scale if scale is not None else head_dim**-0.5
        out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            *padded, dropout_p, is_causal, False, scale=scale
        )[0]
        return out[..., :head_dim]
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return output


def device_steps(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], _result: Any) -> list[DeviceStep]:
    """What an op's device kernel allocates beside its outputs."""
    return [DeviceStep("allocate", nbytes) for nbytes in flash_backward_temporaries(func, args)]


def flash_backward_temporaries(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Bytes of flash backward's scratch tensors: softmax_d, dq_accum and, for grouped heads, expanded dk and dv.

    softmax_d = 4 b a s128; dq_accum = 4 b s128 a d32; dk = dv = e b s_k a d, with s128 = s rounded up to 128 and
    d32 = d rounded up to 32 (64 above 128).

    Source: flash_api.cpp `mha_bwd`. Assumes: the non-deterministic kernel.
    """
    if func is not _FLASH_BACKWARD:
        return []
    query, key = args[1], args[2]
    batch, heads, seq_len, head_dim = query.shape
    seq_rounded = _round_up(seq_len, 128)
    head_rounded = _round_up(head_dim, 32 if head_dim <= 128 else 64)
    sizes = [4 * batch * heads * seq_rounded, 4 * batch * seq_rounded * heads * head_rounded]
    if key.shape[1] != heads:
        sizes += [query.element_size() * batch * key.shape[2] * heads * head_dim] * 2
    return sizes


def in_place_on_device(func: Any, args: tuple[Any, ...], recorder: StorageRecorder) -> Any:
    """The op a device runs in place of this one of backward, on its first argument; None if it allocates as well."""
    if accumulates_in_place(func, args, recorder):
        return torch.ops.aten.add_.Tensor
    in_place = _IN_PLACE_IN_FORMULAS.get(func)
    return in_place if in_place is not None and _made_by_running_formula(args[0], recorder) else None


def _made_by_running_formula(tensor: torch.Tensor, recorder: StorageRecorder) -> bool:
    """Whether the backward formula that runs has itself just allocated this tensor.

    Formulas such as that of `gather` scatter into zeros of their own, out of place only where a mode looks on.

    Source: torch/csrc/autograd/FunctionsManual.cpp and aten/src/ATen/native/ReduceAllOps.cpp, the branches on
    `areAnyTensorSubclassLike`. Confirmed event for event on recorded device histories.
    """
    block, node = recorder.block_of(tensor), running_node()
    return (
        not torch.is_grad_enabled()
        and node is not None
        and block is not None
        and recorder.producer.get(block) == node
    )


def accumulates_in_place(func: Any, args: tuple[Any, ...], recorder: StorageRecorder) -> bool:
    """Whether this add is the engine summing two gradients into a buffer it alone holds.

    The engine adds in place when it holds the last reference to the tensor and to its storage and the layout is
    dense; a dispatch mode makes it think otherwise. An add issued by a backward formula itself has an input
    produced by the running node and is left alone.

    Source: torch/csrc/autograd/input_buffer.cpp. Confirmed event for event on recorded device histories.
    """
    if (
        func is not torch.ops.aten.add.Tensor
        or torch.is_grad_enabled()
        or not isinstance(args[1], torch.Tensor)
    ):
        return False
    first = args[0]
    block = recorder.block_of(first)
    if block is None or first.shape != args[1].shape:
        return False
    node = running_node()
    if node is not None and recorder.producer.get(block) == node:
        return False
    return bool(
        first._use_count() == _USES_OF_AN_UNSHARED_TENSOR
        and torch._C._storage_Use_Count(first.untyped_storage()._cdata) <= _USES_OF_AN_UNSHARED_STORAGE
        and _is_dense(first)
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one gap-free range of memory, in any order of the dims."""
    expected = 1
    for stride, size in sorted(
        (st, sz) for st, sz in zip(tensor.stride(), tensor.shape, strict=True) if sz > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


@contextlib.contextmanager
def cuda_semantics() -> Iterator[None]:
    """Make `meta` choose what a CUDA device chooses; restored on exit."""
    replaced = [
        (F, "scaled_dot_product_attention", flash_attention),
        (transformers.masking_utils, "is_tracing", lambda *_args, **_kwargs: False),
    ]
    replaced = [x for x in replaced if hasattr(x[0], x[1])]  # transformers 4 has no `is_tracing`
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)
