"""Seconds one rank computes for one micro-batch of a LLaMA-family model in bf16.

Every function takes arrays that broadcast against each other. ``recompute`` is the part of a layer's forward that
runs once more in backward: true or 1 with full activation checkpointing, 0.5 where every other product is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from whatfits.estimator.time.priors import GpuPriors, common

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseTraffic:
    """Bytes that operations other than GEMM and attention move, per token.

    The pairs are (forward, backward) factors of the hidden, intermediate and key-value widths of one layer, and of
    the vocabulary for the loss.
    """

    hidden: tuple[float, float]
    intermediate: tuple[float, float]
    key_value: tuple[float, float]
    vocabulary: tuple[float, float]


# Reads and writes of every operation of LlamaForCausalLM in eager mode, transformers 5.23 and torch 2.13.
HF_EAGER = ElementwiseTraffic(
    hidden=(104.3, 246.3), intermediate=(9.9, 17.9), key_value=(20.0, 32.0), vocabulary=(23.2, 40.0)
)
# Two bytes for each tensor touched once operations are fused: torch.compile or Liger kernels.
FUSED = ElementwiseTraffic(
    hidden=(28.0, 56.0), intermediate=(6.0, 12.0), key_value=(4.0, 8.0), vocabulary=(8.0, 16.0)
)


def layer_matrices(dims: Mapping[str, int]) -> tuple[tuple[int, int, int], ...]:
    """Weight matrices of one layer as (how many, rows, columns): q and o, k and v, gate and up and down."""
    hidden, heads, kv_heads, head_dim = dims["h"], dims["a"], dims["k"], dims["d"]
    return (
        (2, hidden, heads * head_dim),
        (2, kv_heads * head_dim, hidden),
        (3, hidden, dims["i"]),
    )


def gemm_seconds(
    dims: Mapping[str, int],
    gpu: GpuPriors,
    *,
    tokens: ArrayLike,
    recompute: ArrayLike,
    element_bytes: int = 2,
    frozen: bool = False,
) -> Seconds:
    """Seconds in matrix multiplications: forward, backward and the recomputed forward.

    t = sum over matrices of passes x max(2 T n k / (P w / (w + w0)), e (n k + T n + T k) / B), w = min(n, k);
    passes = 3 + r for a layer, 3 for the output head; one less where the weights are frozen and have no gradient.

    Source: wave and width behaviour fitted on github.com/mosaicml/llm-foundry@8c8dd48 benchmarking tables;
    FLOPs 2 M N K per product, two products in backward.
    Assumes: dimensions that are multiples of 64; other widths lose more than this says. The products of adapters are
    not counted.
    """
    count = np.asarray(tokens, dtype=np.float64)
    own = 2.0 if frozen else 3.0
    passes = own + np.asarray(recompute, dtype=np.float64)
    per_layer = sum(
        number * _one_gemm_seconds(rows, columns, count, gpu, element_bytes)
        for number, rows, columns in layer_matrices(dims)
    )
    head = _one_gemm_seconds(dims["V"], dims["h"], count, gpu, element_bytes)
    return np.asarray(passes * per_layer * dims["L"] + own * head)


def _one_gemm_seconds(
    rows: int, columns: int, tokens: Seconds, gpu: GpuPriors, element_bytes: int
) -> Seconds:
    width = float(min(rows, columns))
    rate = gpu.gemm_flops_per_second * width / (width + common("gemm_width_half"))
    arithmetic = 2.0 * tokens * rows * columns / rate
    traffic = element_bytes * (rows * columns + tokens * (rows + columns)) / gpu.memory_bytes_per_second
    return np.maximum(arithmetic, traffic)


def attention_seconds(
    dims: Mapping[str, int], gpu: GpuPriors, *, tokens: ArrayLike, seq_len: ArrayLike, recompute: ArrayLike
) -> Seconds:
    """Seconds in causal flash attention.

    t = L (1 + 2.5 + r) x 4 T s a d / 2 / P_attention.

    Source: FLOP counts of FlashAttention-2, arXiv:2307.08691 section 4.1: causal is half, backward 2.5 forwards.
    Assumes: flash attention kernels, one unpacked causal sequence of seq_len tokens.
    """
    passes = 3.5 + np.asarray(recompute, dtype=np.float64)
    forward = (
        2.0
        * np.asarray(tokens, dtype=np.float64)
        * np.asarray(seq_len, dtype=np.float64)
        * dims["a"]
        * dims["d"]
    )
    return np.asarray(dims["L"] * passes * forward / gpu.attention_flops_per_second)


def memory_bound_bytes(
    dims: Mapping[str, int],
    *,
    tokens: ArrayLike,
    recompute: ArrayLike,
    traffic: ElementwiseTraffic = HF_EAGER,
) -> Seconds:
    """Bytes moved by everything that is neither GEMM nor attention, in one micro-batch.

    bytes = T L ((1 + r) f + b) + T V (f_V + b_V); f = f_h h + f_i i + f_kv k d, b alike.

    Source: operation counts of transformers 5.23 LlamaForCausalLM (see HF_EAGER).
    Assumes: every read and write goes to memory; caches make it an upper bound.
    """
    widths = (dims["h"], dims["i"], dims["k"] * dims["d"])
    factors = (traffic.hidden, traffic.intermediate, traffic.key_value)
    forward = sum(width * factor[0] for width, factor in zip(widths, factors, strict=True))
    backward = sum(width * factor[1] for width, factor in zip(widths, factors, strict=True))
    per_layer = (1.0 + np.asarray(recompute, dtype=np.float64)) * forward + backward
    per_token = dims["L"] * per_layer + dims["V"] * sum(traffic.vocabulary)
    return np.asarray(np.asarray(tokens, dtype=np.float64) * per_token)


def memory_bound_seconds(
    dims: Mapping[str, int],
    gpu: GpuPriors,
    *,
    tokens: ArrayLike,
    recompute: ArrayLike,
    traffic: ElementwiseTraffic = HF_EAGER,
) -> Seconds:
    """Seconds in normalisations, rotations, activations, residuals and the loss.

    t = bytes / (0.80 x memory bandwidth).

    Source: achieved bandwidth of such kernels in github.com/sitar-lab/NeuSight@6945927.
    Assumes: as ``memory_bound_bytes``.
    """
    moved = memory_bound_bytes(dims, tokens=tokens, recompute=recompute, traffic=traffic)
    return np.asarray(moved / gpu.memory_bytes_per_second)


def launch_bound_seconds(dims: Mapping[str, int], *, recompute: ArrayLike, compiled: bool = False) -> Seconds:
    """Seconds the host needs to launch one micro-batch: the floor under the GPU's time.

    t = L x c; c = 2 ms eager, 3 ms with recomputation, 0.8 ms compiled.

    Source: priors.json, layer_seconds_*.
    Assumes: one Python process per GPU on a current server CPU.
    """
    eager, checkpointed = common("layer_seconds_eager"), common("layer_seconds_eager_checkpointed")
    scale = common("layer_seconds_compiled") / eager if compiled else 1.0
    per_layer = eager + (checkpointed - eager) * np.asarray(recompute, dtype=np.float64)
    return np.asarray(dims["L"] * scale * per_layer)
