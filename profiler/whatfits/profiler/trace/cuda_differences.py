"""Where a trace on `meta` differs from a run on a CUDA device: every difference, the rule that removes it, and its test.

`DIFFERENCES` is the list; the rules that choose what `meta` runs stand below it, those about single ops in the modules
it names. Source lines are of torch 2.11, to whose CUDA build (on an H100) the rules were held, unless a row says
otherwise. What is known to differ and has no rule is in `NOT_MODELLED`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
import transformers.masking_utils

from whatfits.profiler.trace.attention import SdpaFrontEnd
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.storages import StorageRecorder, running_node
from whatfits.profiler.trace.temporaries import device_steps

__all__ = [
    "DIFFERENCES",
    "NOT_MODELLED",
    "Difference",
    "cuda_semantics",
    "device_steps",
    "in_place_on_device",
]


class Difference(NamedTuple):
    """One difference: what, the rule, `module:name` of its code, source and test; names beginning with . are of this package."""

    what: str
    rule: str
    code: str
    source: str
    test: str


_TESTS = "tests/profiler/trace/"
_OPS = f"{_TESTS}test_temporaries.py::test_every_op_allocates_what_it_did_on_the_device"
"""Every op recorded on an H100, event for event."""
DIFFERENCES: tuple[Difference, ...] = (
    Difference("SDPA on `meta` always takes the math path", "choose as the device does and call that kernel's op", ".attention:SdpaFrontEnd", "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp", f"{_TESTS}test_attention.py::test_first_kernel_that_takes_dtype_heads_and_mask"),
    Difference("Hopper and data-center Blackwell try cuDNN first", "order of preference by compute capability", ".attention:preferred_kernels", "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, check_prefer_cudnn_attention", f"{_TESTS}test_attention.py::test_order_of_preference_follows_the_device"),
    Difference("what flash takes depends on the GPU", "dtype, heads, mask and capability", ".attention:_flash_takes", "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp", f"{_TESTS}test_attention.py::test_generations_of_gpus_take_different_dtypes_and_heads"),
    Difference("what the efficient kernel takes depends on the GPU", "dtype and multiple by capability", ".attention:_efficient_takes", "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp", f"{_TESTS}test_attention.py::test_generations_of_gpus_take_different_dtypes_and_heads"),
    Difference("what cuDNN takes depends on the GPU", "heads up to 128, up to 256 on Hopper and Blackwell", ".attention:_cudnn_takes", "aten/src/ATen/native/transformers/cuda/sdp_utils.cpp", f"{_TESTS}test_attention.py::test_generations_of_gpus_take_different_dtypes_and_heads"),
    Difference("a boolean mask is converted at each call", "a new mask of numbers, kept for backward", ".attention:_numeric_mask", "aten/src/ATen/native/transformers/attention.cpp, convert_boolean_attn_mask", f"{_TESTS}test_attention.py::test_a_boolean_mask_is_converted_anew_and_padded_in_memory"),
    Difference("the efficient kernel wants rows of the mask aligned", "columns padded to 8 in memory", ".attention:_run_efficient", "aten/src/ATen/native/transformers/attention.cpp, pad_bias", f"{_TESTS}test_attention.py::test_a_boolean_mask_is_converted_anew_and_padded_in_memory"),
    Difference("flash wants heads of a multiple of 8", "heads padded, output sliced", ".attention:_run_flash", "aten/src/ATen/native/transformers/attention.cpp, pad_last_dim", f"{_TESTS}test_attention.py::test_heads_come_back_in_their_own_size"),
    Difference("cuDNN's front end", "mask filled with -65504, softmax sums for a backward only", ".attention:_run_cudnn", "aten/src/ATen/native/transformers/attention.cpp", f"{_TESTS}test_recorded_attention.py::test_kernels_dropout_and_lengths"),
    Difference("the math path drops temporaries as C++ does", "fp32 operations in its order", ".attention:_run_math", "aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math", f"{_TESTS}test_recorded_attention.py::test_kernels_dropout_and_lengths"),
    Difference("flash forward splits the keys of few queries", "partial sums and outputs, by multiprocessors", ".attention_scratch:flash_forward", "flash_attn/flash_api.cpp, set_params_splitkv", _OPS),
    Difference("flash backward", "softmax_d, dq_accum, dk and dv of all heads", ".attention_scratch:flash_backward", "flash_attn/flash_api.cpp, mha_bwd", _OPS),
    Difference("efficient forward", "seeds on the host; fp32 sums of wide heads", ".attention_scratch:efficient_forward", "mem_eff_attention/kernel_forward.h", _OPS),
    Difference("efficient backward", "delta and workspace", ".attention_scratch:efficient_backward", "aten/src/ATen/native/transformers/cuda/attention_backward.cu", _OPS),
    Difference("cuDNN forward", "seeds first, 256 bytes last", ".attention_scratch:cudnn_forward", "benchmarks/gpu_recordings, ops: recorded, cuDNN has no source", _OPS),
    Difference("cuDNN backward", "the plan's workspace", ".attention_scratch:cudnn_backward", "benchmarks/gpu_recordings, ops: recorded, cuDNN has no source", _OPS),
    Difference("safe softmax", "two masks and a scalar", ".attention_scratch:safe_softmax", "aten/src/ATen/native/SoftMax.cpp, _safe_softmax", _OPS),
    Difference("softmax backward", "product of gradient and output", ".attention_scratch:softmax_backward", "aten/src/ATen/native/cuda/SoftMax.cu", _OPS),
    Difference("embedding backward sorts more than 3,072 ids", "sort, segments, partial sums; cub by capability", ".index_scratch:embedding_backward", "aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu", _OPS),
    Difference("accumulating index_put sorts", "linear index and sort", ".index_scratch:index_put", "aten/src/ATen/native/cuda/Indexing.cu", _OPS),
    Difference("cumsum", "cast and scan", ".index_scratch:cumsum", "aten/src/ATen/native/cuda/ScanUtils.cuh", _OPS),
    Difference("sort", "places, and cub above 4,096 values", ".index_scratch:sort", "aten/src/ATen/native/cuda/Sort.cpp", _OPS),
    Difference("several indices of unlike strides", "made contiguous", ".index_scratch:index", "aten/src/ATen/native/TensorAdvancedIndexing.cpp", _OPS),
    Difference("reductions stage partial results", "staging and semaphores, by multiprocessors and their threads", ".temporaries:_reduction", "aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig", _OPS),
    Difference("which dims a reduction iterates", "as TensorIterator orders and merges them", ".reductions:reduction_of", "aten/src/ATen/TensorIterator.cpp", _OPS),
    Difference("sums in another dtype", "cast the input first, but halves in fp32", ".temporaries:_sum", "aten/src/ATen/native/ReduceOpsUtils.h, make_reduction", _OPS),
    Difference("norms of a list", "partial norms before the outputs", ".temporaries:_foreach_norm", "aten/src/ATen/native/cuda/ForeachReduceOp.cu", _OPS),
    Difference("native_dropout", "mask before output", ".temporaries:_native_dropout", "aten/src/ATen/native/cuda/Dropout.cu", _OPS),
    Difference("scratch depends on the GPU", "its multiprocessors, threads and capability", ".memory_steps:kernels_of", "aten/src/ATen/native/cuda/Reduce.cuh; CUDA C++ Programming Guide", "tests/estimator/profile/test_scratch.py::test_staging_fills_the_gpu_it_runs_on"),
    Difference("gradients that meet at a fan-in are added out of place under a mode", "in place where the device would", ".cuda_differences:accumulates_in_place", "torch/csrc/autograd/input_buffer.cpp", f"{_TESTS}test_cuda_differences.py::test_gradients_that_meet_are_added_in_place_but_where_a_view_shares_the_storage"),
    Difference("backward formulas scatter out of place under a mode", "into their own zeros", ".cuda_differences:_made_by_running_formula", "torch/csrc/autograd/FunctionsManual.cpp, areAnyTensorSubclassLike", f"{_TESTS}test_cuda_differences.py::test_formulas_write_into_their_own_zeros"),
    Difference("dropout keeps a mask in the input's dtype", "a boolean one", ".cuda_differences:_fused_dropout", "aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable", f"{_TESTS}test_cuda_differences.py::test_dropout_keeps_a_boolean_mask"),
    Difference("softmax of fp16 in fp32 casts the input", "one kernel that reads fp16", ".cuda_differences:_softmax_of_half", "aten/src/ATen/native/SoftMax.cpp, half_to_float", f"{_TESTS}test_cuda_differences.py::test_softmax_reads_fp16_and_writes_fp32"),
    Difference("`torch.nn.RMSNorm` is decomposed", "one kernel each way", ".cuda_differences:_fused_rms_norm", "aten/src/ATen/native/layer_norm.cpp, rms_norm_symint", f"{_TESTS}test_cuda_differences.py::test_rms_norm_is_one_kernel_each_way"),
    Difference("`torch.tensor` is unseen by modes", "made by an op", ".cuda_differences:_seen", "torch/csrc/utils/tensor_new.cpp", f"{_TESTS}test_cuda_differences.py::test_a_tensor_made_from_values_is_an_allocation"),
    Difference("transformers takes `meta` for tracing and builds a mask", "it hears that nothing traces", ".cuda_differences:_nothing_traces", "transformers 4.57 and 5.23, masking_utils.py, is_tracing", f"{_TESTS}test_cuda_differences.py::test_transformers_hears_that_nothing_traces"),
    Difference("`.item()` of a boolean has no value", "answered as the batch's mask has it", ".masks:scalar_answers", "transformers 4.57 and 5.23, masking_utils.py", f"{_TESTS}test_masks.py::test_the_answer_is_what_the_values_say"),
    Difference("autocast has no key for `meta`", "kernels at a key of their own, with the device's lists", ".autocast:autocast_on_meta", "aten/src/ATen/autocast_mode.cpp", f"{_TESTS}test_autocast.py::test_dtypes_are_those_of_a_real_cpu"),
    Difference("CUDA's cast lists are not the CPU's", "read from the installed header", ".autocast:read_cast_lists", "torch/include/ATen/autocast_mode.h, as installed", f"{_TESTS}test_autocast.py::test_the_lists_hold_the_ops_that_torch_has_a_cuda_kernel_for"),
    Difference("casts of weights are kept until the outermost context ends", "kept for fp32 leaves that train", ".autocast:_Casts", "aten/src/ATen/autocast_mode.cpp, cached_cast", f"{_TESTS}test_autocast.py::test_only_a_weight_that_trains_is_cast_once_until_the_outermost_context_ends"),
    Difference("arguments are cast from the last to the first", "in that order", ".autocast:_with_policy", "aten/src/ATen/autocast_mode.h, WrapFunction_; recorded", f"{_TESTS}test_recorded_precisions.py::test_every_event"),
    Difference("SDPA's stand-in reaches autocast in pieces", "cast as one op", ".autocast:_make_attention", "aten/src/ATen/autocast_mode.h", f"{_TESTS}test_autocast.py::test_attention_is_cast_as_a_whole"),
    Difference("`custom_fwd` casts tensors of the device alone", "`meta` taken for it", ".autocast:_make_custom_cast", "torch/amp/autocast_mode.py, _cast", f"{_TESTS}test_autocast.py::test_autograd_functions_get_their_inputs_cast"),
    Difference("empty storages and those of the host are no allocations", "no events", ".storages:StorageRecorder", "c10/cuda/CUDACachingAllocator.cpp", f"{_TESTS}test_storages.py::test_storages_of_zero_bytes_of_other_devices_and_from_before_are_no_events"),
    Difference("Triton's fused loss does not run on `meta`", "an op that allocates as the kernel does", ".losses:FusedLinearCrossEntropy", "Liger-Kernel 0.8.5, ops/fused_linear_cross_entropy.py", f"{_TESTS}test_losses.py::test_a_step_allocates_what_an_h100_recorded"),
    Difference("4-bit layers have no `meta` kernels", "a layer that allocates as theirs does", ".adapters:FrozenLinear4bit", "bitsandbytes 0.50, autograd/_functions.py, backends/cuda/ops.py", f"{_TESTS}test_adapters.py::test_the_stand_in_for_4_bit_layers_allocates_what_bitsandbytes_allocated_on_an_h100"),
    Difference("cuBLAS has a workspace", "one each for the forward and the backward thread, by capability, added to the step's timeline", "whatfits.estimator.memory.device:cublas_workspace_bytes", "aten/src/ATen/cuda/CublasHandlePool.cpp, torch 2.1 to 2.11", "tests/estimator/memory/test_device.py::test_workspaces_as_seen_in_device_histories"),
    Difference("a mode that swaps functions is off while checkpoints recompute", "functions are replaced, for the whole trace", ".cuda_differences:cuda_semantics", "torch/utils/checkpoint.py", f"{_TESTS}test_checkpoints.py::test_a_step_allocates_what_an_h100_recorded"),
    Difference("the fused loss asks the device whether its gradient is one", "it is, and the question's tensors are made", ".losses:_is_one", "Liger-Kernel 0.8.5, ops/utils.py, torch.equal", f"{_TESTS}test_losses.py::test_a_step_allocates_what_an_h100_recorded"),
    Difference("the loss scaler's numbers are not made in the micro-batch", "they exist before it", ".training_step:MicroBatchTracer", "torch/amp/grad_scaler.py, _lazy_init_scale_growth_tracker", f"{_TESTS}test_recorded_precisions.py::test_every_event"),
    Difference("unscaling is no part of the micro-batch", "in the step's timeline", "whatfits.estimator.memory.loop:unscaling_events", "torch/amp/grad_scaler.py, unscale_", "tests/estimator/memory/test_loop.py::test_scaled_steps_allocate_what_was_recorded"),
    Difference("clipping stages partial norms", "in the step's timeline", "whatfits.estimator.memory.loop:clipping_events", "aten/src/ATen/native/cuda/ForeachReduceOp.cu", "tests/estimator/memory/test_loop.py::test_clipping_allocates_what_was_recorded"),
    Difference("AdamW's fused kernel refuses `meta`, and the default there is the loop", "programs of the loop, the list and the fused kernel, by the run's implementation", "whatfits.estimator.memory.optimizers.torch_optim:AdamWFused", "torch/optim/adam.py, _default_to_fused_or_foreach", "tests/estimator/memory/optimizers/test_events.py::test_torch_optimizers"),
    Difference("optimizers' decompositions have workspaces", "in the optimizers' programs", "whatfits.estimator.memory.optimizers.linalg_scratch:record_svd", "benchmarks/gpu_recordings: recorded, cuSOLVER has no source", "tests/estimator/memory/optimizers/test_recorded_matrix_steps.py::test_svd_workspaces"),
    Difference("optimizers' reductions stage partial results", "in the optimizers' programs", "whatfits.estimator.memory.optimizers.device_scratch:record_full_reduction", "aten/src/ATen/native/cuda/Reduce.cuh", "tests/estimator/memory/optimizers/test_device_scratch.py::test_recorded_reductions"),
)  # fmt: skip
NOT_MODELLED: tuple[tuple[str, str], ...] = (
    ("1 MiB of cublasLt workspace at each addmm with a bias", "histories of torch 2.1 to 2.4; `linear` recorded with 2.11 allocates nothing of its own"),
    ("index_put's copies of a gradient that is not contiguous and of 32-bit ids", "recorded histories; ids are 64-bit and gradients contiguous in the traced models"),
    ("bmm's copy of an expanded or badly strided operand", "histories of two programs of older torch; products recorded with 2.11 allocate nothing of their own"),
    ("nonzero, boolean indexing, unique, one_hot, multinomial", "sizes depend on values, which a trace has none of"),
    ("topk of one row above 16,384 values, randperm", "native/cuda; multi-block scratch of few calls"),
    ("cuDNN convolutions, grouped_mm, linear algebra in model code", "workspaces are the plan's choice, 50 kB to 128 MiB"),
    ("inference_mode: composite ops are seen whole, and autocast keeps no weights' casts", "recorded histories; training has no inference_mode"),
    ("deterministic flash backward, whose dq_accum is repeated", "flash_attn/flash_api.cpp; off by default"),
    ("FSDP2's storages freed by resize_, and pools per stream", "no dispatched op; the estimator's FSDP columns are analytical"),
    ("torch.compile", "Inductor's buffers; the estimator refuses it"),
    ("which experts tokens are routed to", "values; the trace shows one routing"),
    ("CUDA context, NCCL and fragmentation", "beside the allocator's events; whatfits.estimator.memory.device and the replay"),
)  # fmt: skip
"""Known differences without a rule: what, and why or where it stands."""

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


def _nothing_traces(*_args: Any, **_kwargs: Any) -> bool:
    """What `transformers.masking_utils.is_tracing` says of tensors of a device."""
    return False


def _replacements(options: StepOptions) -> list[tuple[Any, str, Any]]:
    """Functions that choose otherwise on a device: (owner, name, what stands in)."""
    replaced: list[tuple[Any, str, Any]] = [
        (F, "scaled_dot_product_attention", SdpaFrontEnd(options.kernels)),
        (torch, "tensor", _seen(torch.tensor)),
        (F, "dropout", _fused_dropout(F.dropout)),
        (F, "rms_norm", _fused_rms_norm(F.rms_norm)),
        (F, "softmax", _softmax_of_half(F.softmax, _ATEN._softmax)),
        (F, "log_softmax", _softmax_of_half(F.log_softmax, _ATEN._log_softmax)),
    ]
    if hasattr(transformers.masking_utils, "is_tracing"):
        replaced.append((transformers.masking_utils, "is_tracing", _nothing_traces))
    return replaced


@contextlib.contextmanager
def cuda_semantics(options: StepOptions = _DEFAULTS) -> Iterator[None]:
    """Make `meta` choose what a CUDA device chooses; restored on exit."""
    replaced = _replacements(options)
    before = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replaced, before, strict=True):
            setattr(owner, name, value)
