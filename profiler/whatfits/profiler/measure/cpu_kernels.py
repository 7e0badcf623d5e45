"""Trace on `meta` as a CPU would run it: the twin of `trace.cuda_differences` for checks on machines without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)

from whatfits.profiler.trace.training_step import MicroBatchTracer

__all__ = ["CpuKernelTracer", "cpu_flash_attention"]


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
        NotImplementedError: a mask or grouped key and value heads, which this check does not use.
    """
    if attn_mask is not None or enable_gqa:
        raise NotImplementedError("the CPU check takes neither a mask nor grouped key and value heads")
    output: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]
    return output


class CpuKernelTracer(MicroBatchTracer):
    """Traces micro-batches with the attention kernel of a CPU in place of the device's."""

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        with super()._instrumented():
            before = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = cpu_flash_attention
            try:
                yield
            finally:
                F.scaled_dot_product_attention = before
