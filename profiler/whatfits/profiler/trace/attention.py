"""What `F.scaled_dot_product_attention` does before a kernel runs, as ATen does it for CUDA tensors.

The front end chooses the first kernel, in the device's order of preference, that can take the arguments; converts a
boolean mask to one of numbers in the query's dtype, anew at each call; pads the mask or the heads as the kernel asks;
and calls the kernel's op, which exists on `meta`. What the ops allocate inside is said by `temporaries`.

Source: aten/src/ATen/native/transformers/attention.cpp, transformers/cuda/sdp_utils.cpp and sdp_utils_cpp.h of torch 2.11.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)

__all__ = ["SdpaFrontEnd", "preferred_kernels"]

_HALVES = (torch.float16, torch.bfloat16)
_FLASH_MAX_HEAD_DIM = 256
_FLASH_HEAD_MULTIPLE = 8
_CUDNN_HEAD_MULTIPLE = 8
_CUDNN_MAX_HEAD_DIM = 128
_CUDNN_MAX_HEAD_DIM_HOPPER = 256
_MASK_MULTIPLE = 8
"""Columns to which the efficient kernel's mask is padded in memory."""
_CUDNN_FILL = -65504.0
"""What cuDNN's mask holds for a hidden key, not minus infinity."""


def preferred_kernels(capability: tuple[int, int]) -> tuple[str, ...]:
    """The order in which torch tries the kernels: cuDNN first on Hopper and data-center Blackwell.

    Source: sdp_utils.cpp, check_prefer_cudnn_attention. Assumes: cuDNN after 9.15.0, as wheels for CUDA 13 have.
    """
    others = ("flash", "efficient", "math")
    return ("cudnn", *others) if capability in ((9, 0), (10, 0), (10, 3)) else others


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The arguments of one call."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    scale: float | None
    grouped: bool

    @property
    def requires_grad(self) -> bool:
        """Whether backward will need the logarithms of the softmax sums."""
        inputs = (self.query, self.key, self.value)
        return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


@dataclass(frozen=True, slots=True)
class SdpaFrontEnd:
    """Stands in for `F.scaled_dot_product_attention` on tensors that torch does not take for a device's.

    Attributes:
        kernels: flash, efficient, cudnn and math that may be chosen, in order of preference.
        capability: of the GPU.
    """

    kernels: tuple[str, ...] = ("flash", "efficient", "math")
    capability: tuple[int, int] = (9, 0)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Attention by the kernel the device would choose.

        Raises:
            NotImplementedError: none of the allowed kernels takes these arguments.
        """
        call = _Call(
            query=query,
            key=key,
            value=value,
            mask=attn_mask,
            dropout=dropout_p,
            causal=is_causal,
            scale=scale,
            grouped=enable_gqa,
        )
        del query, key, value, attn_mask
        run = _RUN[self.choose(call)]
        return run(call)

    def choose(self, call: _Call) -> str:
        """The first kernel that takes the arguments."""
        for kernel in self.kernels:
            if _TAKES[kernel](call, self.capability):
                return kernel
        raise NotImplementedError(
            f"none of {', '.join(self.kernels)} takes {call.query.dtype} heads of {call.query.shape[-1]}"
            f" and {call.value.shape[-1]}, {'with' if call.mask is not None else 'without'} a mask"
        )


def _same_heads(call: _Call, *, grouped: bool) -> bool:
    """Whether batch and heads fit; a kernel that takes grouped heads takes any divisor."""
    queries, keys, values = (t.shape[1] for t in (call.query, call.key, call.value))
    if call.grouped and grouped:
        return keys == values and queries % keys == 0
    return queries == keys == values


def _flash_takes(call: _Call, capability: tuple[int, int]) -> bool:
    head_dim = call.query.shape[-1]
    same = head_dim == call.key.shape[-1] == call.value.shape[-1]
    small_shared_memory = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    trains = (
        head_dim <= 192
        or not (call.requires_grad and small_shared_memory)
        or (not call.dropout and head_dim > 224)
    )
    return (
        call.mask is None
        and capability >= (8, 0)
        and call.query.dtype in _HALVES
        and same
        and head_dim <= _FLASH_MAX_HEAD_DIM
        and trains
        and not (call.causal and call.query.shape[-2] != call.key.shape[-2])
        and _same_heads(call, grouped=True)
    )


def _efficient_takes(call: _Call, capability: tuple[int, int]) -> bool:
    half = call.query.dtype in _HALVES
    multiple = (8 if half else 4) if capability >= (8, 0) else (8 if half and capability >= (7, 0) else 1)
    dtypes = (*_HALVES, torch.float32) if capability >= (8, 0) else (torch.float16, torch.float32)
    return (
        call.query.dtype in dtypes
        and call.query.shape[-1] == call.key.shape[-1]
        and call.query.shape[-1] % multiple == 0
        and call.value.shape[-1] % multiple == 0
        and _same_heads(call, grouped=False)
    )


def _cudnn_takes(call: _Call, capability: tuple[int, int]) -> bool:
    dims = (call.query.shape[-1], call.value.shape[-1])
    hopper = capability == (9, 0) or capability[0] == 10
    largest = _CUDNN_MAX_HEAD_DIM_HOPPER if hopper else _CUDNN_MAX_HEAD_DIM
    return (
        capability >= (8, 0)
        and call.query.dtype in _HALVES
        and all(d % _CUDNN_HEAD_MULTIPLE == 0 and d <= largest for d in dims)
        and call.key.shape[-2] > 1
        and _same_heads(call, grouped=True)
    )


def _numeric_mask(call: _Call, hidden: float = -math.inf) -> torch.Tensor | None:
    """The mask as numbers to be added: a boolean one is converted, by way of two scalars on the device."""
    mask = call.mask
    if mask is None or mask.dtype != torch.bool:
        return mask
    return _convert(mask, call.query.dtype, hidden)


def _convert(mask: torch.Tensor, dtype: torch.dtype, hidden: float) -> torch.Tensor:
    return torch.where(mask, torch.scalar_tensor(0.0, dtype=dtype, device=mask.device), hidden)


def _first(results: list[Any]) -> torch.Tensor:
    """The output; the rest goes in order, as the members of a tuple in C++ do."""
    output: torch.Tensor = results.pop(0)
    while results:
        results.pop(0)
    return output


def _run_flash(call: _Call) -> torch.Tensor:
    tensors, scale, head_dim = [call.query, call.key, call.value], call.scale, call.query.shape[-1]
    missing = -head_dim % _FLASH_HEAD_MULTIPLE
    if missing:
        tensors = [F.pad(t, (0, missing)) for t in tensors]
        scale = scale if scale is not None else head_dim**-0.5
    results = list(
        torch.ops.aten._scaled_dot_product_flash_attention(
            *tensors, call.dropout, call.causal, False, scale=scale
        )
    )
    output = _first(results)
    return output[..., :head_dim] if missing else output


def _run_efficient(call: _Call) -> torch.Tensor:
    mask = _numeric_mask(call)
    if mask is not None:
        columns = mask.shape[-1]
        missing = -columns % _MASK_MULTIPLE
        if missing:
            mask = F.pad(mask, (0, missing))[..., :columns]
        mask = mask.expand(*call.query.shape[:3], columns)
    results = list(
        torch.ops.aten._scaled_dot_product_efficient_attention(
            call.query,
            call.key,
            call.value,
            mask,
            call.requires_grad,
            call.dropout,
            call.causal,
            scale=call.scale,
        )
    )
    return _first(results)


def _run_cudnn(call: _Call) -> torch.Tensor:
    results = list(
        torch.ops.aten._scaled_dot_product_cudnn_attention(
            call.query,
            call.key,
            call.value,
            _numeric_mask(call, _CUDNN_FILL),
            call.requires_grad,
            call.dropout,
            call.causal,
            False,
            scale=call.scale,
        )
    )
    return _first(results)


def _run_math(call: _Call) -> torch.Tensor:
    """Plain operations in fp32; each temporary is dropped where the C++ of the device drops it."""
    origin = call.query.dtype
    given_mask = _numeric_mask(call)
    query, key, value = (t.float() if origin in _HALVES else t for t in (call.query, call.key, call.value))
    root = (call.scale if call.scale is not None else call.query.shape[-1] ** -0.5) ** 0.5
    scaled = query * root
    mask = given_mask
    if call.causal:
        mask = _causal_mask(scaled, key)
    keys, values = key, value
    if call.grouped:
        keys, values = (t.repeat_interleave(query.shape[1] // t.shape[1], -3) for t in (key, value))
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * root)
    if mask is not None:
        weights = weights.add_(mask)
    weights = torch.ops.aten._safe_softmax(weights, -1)
    if call.dropout > 0.0:
        weights = torch.ops.aten.native_dropout(weights, call.dropout, True)[0]
    returned = weights.to(origin)
    output = torch.matmul(weights, values).to(origin)
    del weights, keys, values, scaled, mask, value, key, query, returned, given_mask
    return output


def _causal_mask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    size = (query.shape[-2], key.shape[-2])
    return _convert(torch.ones(size, dtype=torch.bool, device=query.device).tril(), query.dtype, -math.inf)


_TAKES: dict[str, Callable[[_Call, tuple[int, int]], bool]] = {
    "flash": _flash_takes,
    "efficient": _efficient_takes,
    "cudnn": _cudnn_takes,
    "math": lambda _call, _capability: True,
}
_RUN: dict[str, Callable[[_Call], torch.Tensor]] = {
    "flash": _run_flash,
    "efficient": _run_efficient,
    "cudnn": _run_cudnn,
    "math": _run_math,
}
