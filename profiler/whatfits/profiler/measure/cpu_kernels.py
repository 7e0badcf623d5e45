"""Trace on `meta` as a CPU would run it: the twin of `trace.cuda_differences` for checks on machines without a GPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
import transformers.masking_utils

from whatfits.profiler.trace.autocast import AutocastDevice, CastPolicy, autocast_on_meta
from whatfits.profiler.trace.cuda_differences import in_place_on_device
from whatfits.profiler.trace.masks import scalar_answers
from whatfits.profiler.trace.storages import StorageRecorder
from whatfits.profiler.trace.training_step import MicroBatchTracer

__all__ = ["CPU", "CpuKernelTracer", "cpu_flash_attention"]


def cpu_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Stand in for `F.scaled_dot_product_attention` where a CPU would choose its flash kernel.

    Source: aten/src/ATen/native/transformers/attention.cpp, `scaled_dot_product_attention` on the CPU.

    Raises:
        NotImplementedError: a mask, grouped key and value heads or dropout, for which a CPU has other kernels.
    """
    if attn_mask is not None or enable_gqa or dropout_p:
        raise NotImplementedError(
            "the CPU's kernels for a mask, grouped key and value heads or dropout in attention are not traced"
        )
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]
    return output


_LOWER_PRECISION = {
    "conv1d", "conv2d", "conv3d", "bmm", "mm", "linalg_vecdot", "baddbmm", "addmm", "_addmm_activation", "addbmm",
    "linear", "_convolution", "matmul", "conv_tbc", "mkldnn_rnn_layer", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "prelu", "scaled_dot_product_attention", "_native_multi_head_attention",
}  # fmt: skip
_PROMOTE = {"stack", "cat", "index_copy"}


@cache
def _cpu_cast_lists() -> dict[Any, CastPolicy]:
    """Every op with a kernel at the CPU's autocast key: cast down, promoted, or else cast to fp32.

    Source: aten/src/ATen/autocast_mode.cpp, `TORCH_LIBRARY_IMPL(aten, AutocastCPU, m)`.
    """
    found = {}
    for full_name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full_name.partition("::")
        name, _, overload = rest.partition(".")
        if namespace != "aten" or not torch._C._dispatch_has_kernel_for_dispatch_key(
            full_name, "AutocastCPU"
        ):
            continue
        policy = CastPolicy.PROMOTE if name in _PROMOTE else CastPolicy.FP32
        op = getattr(getattr(torch.ops.aten, name), overload or "default")
        found[op] = CastPolicy.LOWER_PRECISION_FP if name in _LOWER_PRECISION else policy
    return found


CPU = AutocastDevice("cpu", _cpu_cast_lists, "AutocastIPU")


class CpuKernelTracer(MicroBatchTracer):
    """Traces micro-batches with the attention kernel and the autocast of a CPU in place of the device's."""

    def make_recorder(self) -> StorageRecorder:
        """A recorder that adds none of a CUDA device's temporaries."""
        return StorageRecorder(
            device_type=self.device.type,
            current_module=self.tracker.current,
            temporaries=lambda *_op: [],
            in_place=in_place_on_device,
            scalar_answer=scalar_answers(self.options.mask),
        )

    @contextmanager
    def semantics(self) -> Iterator[None]:
        """Make `meta` choose what a CPU chooses."""
        replaced = [
            (F, "scaled_dot_product_attention", cpu_flash_attention),
            (transformers.masking_utils, "is_tracing", lambda *_args, **_kwargs: False),
        ]
        with ExitStack() as stack:
            for owner, name, value in replaced:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            stack.enter_context(autocast_on_meta(CPU))
            yield
