"""Where a trace on `meta` differs from a run on a CUDA device, and the rule that removes each difference.

| difference | rule | source |
|---|---|---|
| `meta` tensors always take SDPA's math path | `attention.SdpaFrontEnd` chooses as the device does and calls that kernel's op | aten/src/ATen/native/transformers/attention.cpp, cuda/sdp_utils.cpp |
| kernels allocate scratch inside, some before their outputs; some outputs lie on the host | `temporaries.device_steps`, op by op | named rule by rule |
| under a dispatch mode autograd adds gradients that meet at a fan-in out of place | `in_place_on_device`: in place where the device would | torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace` |
| under a dispatch mode backward formulas scatter into fresh zeros out of place | `in_place_on_device`: into those zeros | torch/csrc/autograd/FunctionsManual.cpp, `areAnyTensorSubclassLike` |
| dropout multiplies by a mask in the input's dtype | `native_dropout`, which keeps a boolean mask | aten/src/ATen/native/Dropout.cpp, `is_fused_kernel_acceptable` |
| softmax of fp16 in fp32 casts the input first | the kernel that reads fp16 | aten/src/ATen/native/SoftMax.cpp, `half_to_float` |
| `torch.nn.RMSNorm` is decomposed | one kernel each way | aten/src/ATen/native/layer_norm.cpp, `rms_norm_symint` |
| a boolean read back from the device (`.item()`) has no value | answered as the batch's mask has it, `masks.scalar_answers` | transformers/masking_utils.py |
| transformers treats `meta` as tracing and then builds a mask | `is_tracing` answers False | transformers/masking_utils.py |
| `torch.tensor` is made unseen by dispatch modes | made by an op | torch/csrc/utils/tensor_new.cpp |
| autocast has no key for `meta` | `autocast.autocast_on_meta` | aten/src/ATen/autocast_mode.cpp |

Not in the traces: cuBLAS workspaces, which the estimator's step timeline adds.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
import transformers.masking_utils

from whatfits.profiler.trace.attention import SdpaFrontEnd
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.storages import StorageRecorder, running_node
from whatfits.profiler.trace.temporaries import device_steps

__all__ = ["cuda_semantics", "device_steps", "in_place_on_device"]

_ATEN = torch.ops.aten
_DEFAULTS = StepOptions()
_IN_PLACE_IN_FORMULAS = {
    _ATEN.scatter.src: _ATEN.scatter_.src,
    _ATEN.scatter.value: _ATEN.scatter_.value,
    _ATEN.scatter_add.default: _ATEN.scatter_add_.default,
    _ATEN.index_put.default: _ATEN.index_put_.default,
    _ATEN.index_add.default: _ATEN.index_add_.default,
    _ATEN._index_put_impl.default: _ATEN._index_put_impl_.default,
}
"""Ops that backward formulas apply to a tensor of their own making, with what a device runs instead."""
_USES_OF_AN_UNSHARED_TENSOR = 4
"""Tensor references seen from a dispatch mode when the engine's buffer holds the only other one."""
_USES_OF_AN_UNSHARED_STORAGE = 2


def in_place_on_device(func: Any, args: tuple[Any, ...], recorder: StorageRecorder) -> Any:
    """The op a device runs in place of this one of backward, on its first argument; None if it allocates as well."""
    if accumulates_in_place(func, args, recorder):
        return _ATEN.add_.Tensor
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
    if func is not _ATEN.add.Tensor or torch.is_grad_enabled() or not isinstance(args[1], torch.Tensor):
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


def _fused_dropout(original: Any) -> Any:
    """`F.dropout` by the op that keeps a boolean mask."""

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
        if not input.is_meta or not training or not 0.0 < p < 1.0 or not input.numel():
            return original(input, p, training, inplace)
        return _ATEN.native_dropout(input, p, True)[0]

    return dropout


def _softmax_of_half(original: Any, fused: Any) -> Any:
    """Softmax or log-softmax that reads fp16 and writes fp32 in one kernel."""

    def softmax(input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:  # noqa: A002
        if input.is_meta and input.dtype == torch.float16 and dtype == torch.float32 and dim is not None:
            return fused(input, dim, True)
        return original(input, dim, _stacklevel, dtype)

    return softmax


def _seen(make: Any) -> Any:
    """`torch.tensor` whose storage on `meta` comes from an op, as each storage of a device comes from its allocator."""

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = make(*args, **kwargs)
        return torch.empty_like(made).requires_grad_(made.requires_grad) if made.is_meta else made

    return tensor


class _FusedRmsNorm(torch.autograd.Function):
    """The allocations of the fused kernels: output and inverse norms; gradients of input and weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, num_dims: int) -> torch.Tensor:
        """Output, then one fp32 value per normalised row."""
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        norms = torch.empty(x.shape[: x.ndim - num_dims], dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, norms)
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        """No scratch, as recorded on an H100 (benchmarks/gpu_recordings, rms_norm)."""
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


def _fused_rms_norm(original: Any) -> Any:
    """`F.rms_norm` by one kernel each way."""

    def rms_norm(input: torch.Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:  # noqa: A002
        if not input.is_meta or (weight is not None and weight.dtype != input.dtype):
            return original(input, normalized_shape, weight, eps)
        return _FusedRmsNorm.apply(input, weight, len(normalized_shape))

    return rms_norm


@contextlib.contextmanager
def cuda_semantics(options: StepOptions = _DEFAULTS) -> Iterator[None]:
    """Make `meta` choose what a CUDA device chooses; restored on exit."""
    replaced = [
        (F, "scaled_dot_product_attention", SdpaFrontEnd(options.kernels)),
        (torch, "tensor", _seen(torch.tensor)),
        (F, "dropout", _fused_dropout(F.dropout)),
        (F, "rms_norm", _fused_rms_norm(F.rms_norm)),
        (F, "softmax", _softmax_of_half(F.softmax, _ATEN._softmax)),
        (F, "log_softmax", _softmax_of_half(F.log_softmax, _ATEN._log_softmax)),
    ]
    if hasattr(transformers.masking_utils, "is_tracing"):
        replaced.append((transformers.masking_utils, "is_tracing", lambda *_args, **_kwargs: False))
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)
