"""Bytes of scratch memory that CUDA kernels allocate beside their outputs, as functions of sizes and the GPU.

Every function takes ints or integer arrays. They are the exact formulas behind the derived symbols of
`expressions`, and behind what the tracer adds to an op that is silent on `meta`.
"""

from typing import Any

import numpy as np

__all__ = [
    "DEFAULT_SMS",
    "DEFAULT_THREADS_PER_SM",
    "UNSORTED_IDS",
    "cudnn_backward_scratch",
    "efficient_backward_scratch",
    "flash_splits",
    "may_split",
    "output_vector",
    "partial_segments",
    "radix_sort_scratch",
    "reduction_scratch",
    "scan_scratch",
    "unique_scratch",
]

DEFAULT_SMS = 132
"""Streaming multiprocessors of an H100 SXM."""
DEFAULT_THREADS_PER_SM = 2048
UNSORTED_IDS = 3072
"""Ids up to which the embedding's backward needs no sort."""

_ALIGNMENT = 256
_SLACK = 255
"""cub aligns each part of its scratch to 256 bytes inside one allocation, which it pads to be alignable itself."""
_THREADS = 512
_LEAST_VALUES, _MOST_VALUES = 16, 256


def _ceil_div(a: Any, b: Any) -> Any:
    return -(-a // b)


def _aligned(nbytes: Any) -> Any:
    return _ceil_div(nbytes, _ALIGNMENT) * _ALIGNMENT


def _power_of_two(value: Any) -> Any:
    """Largest power of two that is not above a positive integer."""
    return 1 << (np.frexp(value)[1].astype(np.int64) - 1)


def radix_sort_scratch(
    count: Any, key_bytes: int, value_bytes: int, bits: int | None = None, *, capability: int = 9
) -> Any:
    """Scratch of `cub::DeviceRadixSort::SortPairs` over `count` pairs; 1 where one block sorts them all.

    2 copies of keys and values + 8-bit histograms of 8-byte counters + 1024 bytes per tile + 256.

    Source: cub/device/dispatch/dispatch_radix_sort.cuh, InvokeOnesweep. Assumes: the tunings of compute capability 9.0
    (tiles of 4,608 pairs of 8 and 8 bytes, 5,376 of 4 and 8, 6,528 of 4 and 4), recorded on an H100
    (benchmarks/gpu_recordings, 23 sizes each); of 8.x for 8 and 8 bytes (3,840 pairs), seen in the published
    histories of tests/golden/device_steps.
    """
    tiles = {(8, 8): 4608, (4, 8): 5376, (4, 4): 6528}
    tile = 3840 if capability == 8 and key_bytes == value_bytes == 8 else tiles[key_bytes, value_bytes]
    single = 256 * (19 * 4 // max(key_bytes, value_bytes))
    passes = _ceil_div(8 * key_bytes if bits is None else bits, 8)
    nbytes = (
        _aligned(count * key_bytes)
        + _aligned(count * value_bytes)
        + passes * 256 * 8
        + 1024 * _ceil_div(count, tile)
        + _ALIGNMENT
        + _SLACK
    )
    return np.where(count <= single, 1, nbytes)


def scan_scratch(count: Any, element_bytes: int) -> Any:
    """Scratch of `cub::DeviceScan`: one status word per tile and 32 more.

    Source: cub/agent/single_pass_scan_operators.cuh, ScanTileState. Assumes: tiles of 1,920 elements of 4 bytes and
    896 of 8 (recorded on an H100, benchmarks/gpu_recordings).
    """
    tile, word = {4: (1920, 8), 8: (896, 16)}[element_bytes]
    return _aligned((_ceil_div(count, tile) + 32) * word) + _ALIGNMENT + _SLACK


def unique_scratch(count: Any, key_bytes: int = 8) -> Any:
    """Scratch of thrust's unique by key over `count` keys.

    Source: cub/device/dispatch/dispatch_unique_by_key.cuh. Assumes: tiles of 2,304 keys of 8 bytes and 2,816 of 4
    (equal to the 52 recorded on an H100, of up to 262,144 keys).
    """
    tile = {8: 2304, 4: 2816}[key_bytes]
    return _aligned((_ceil_div(count, tile) + 32) * 8) + 2 * _ALIGNMENT + _SLACK


def partial_segments(count: Any, rows: Any) -> Any:
    """Pieces of at most 10 equal indices that the embedding's backward sums first: count // 10 + distinct indices."""
    return count // 10 + np.minimum(count, rows)


def output_vector(*multiples: Any) -> Any:
    """Outputs a thread of a reduction handles at once: 4, 2 or 1, so that it divides all the given lengths."""
    vector: Any = 4
    for multiple in multiples:
        vector = np.minimum(vector, np.where(multiple % 4 == 0, 4, np.where(multiple % 2 == 0, 2, 1)))
    return vector


def reduction_scratch(
    outputs: Any,
    inputs: Any,
    *,
    fastest: bool = False,
    vector: Any = 1,
    loads: Any = 1,
    accumulator_bytes: int = 4,
    sms: Any = DEFAULT_SMS,
    threads_per_sm: Any = DEFAULT_THREADS_PER_SM,
) -> tuple[Any, Any]:
    """Staging and semaphore bytes of a reduction of `inputs` values to each of `outputs` results; 0, 0 if one block does.

    A block has at most 512 / vector threads. Where a thread would have 256 values or more and the grid does not fill
    the GPU, c = max(min(ceil(slots / grid), ceil(values / 16)), ceil(values / 256)) blocks share an output and stage
    accumulator x outputs x c bytes, times block width x vector where threads do not sum along the width.

    Source: aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig, global_memory_size, semaphore_size. Equal to all
    1,280 reductions recorded on an H100 (benchmarks/gpu_recordings).

    Args:
        outputs: number of results.
        inputs: values behind each.
        fastest: whether the reduced dim is the contiguous one.
        vector: outputs per thread.
        loads: inputs per load, 4 in a full reduction of more than 128 contiguous values.
        accumulator_bytes: 4 for sums, 16 where an index travels along.
        sms: streaming multiprocessors.
        threads_per_sm: resident threads of each.
    """
    limit = _THREADS // vector
    along, across = (inputs // loads, outputs) if fastest else (outputs // vector, inputs)
    along, across = (_power_of_two(np.minimum(n, limit)) for n in (along, across))
    height = np.minimum(across, limit // np.minimum(along, 32))
    width = np.minimum(along, limit // height)
    values = _ceil_div(inputs, width) if fastest else inputs
    per_block = 1 if fastest else width
    split_warps = values >= np.minimum(height * 16, _MOST_VALUES)
    values = np.where(split_warps, _ceil_div(values, height), values)
    grid = _ceil_div(outputs // vector, np.where(split_warps, per_block, per_block * height))
    slots = sms * (threads_per_sm // (width * height))
    blocks = np.minimum(_ceil_div(slots, grid), _ceil_div(values, _LEAST_VALUES))
    blocks = np.maximum(blocks, _ceil_div(values, _MOST_VALUES))
    shared = split_warps & (values >= _MOST_VALUES) & (grid <= slots) & (blocks > 1)
    staging = accumulator_bytes * outputs * blocks * (1 if fastest else width * vector)
    return np.where(shared, staging, 0), np.where(shared, 4 * grid, 0)


def flash_splits(batch: int, heads: int, seq_len: int, head_dim: int, sms: int = DEFAULT_SMS) -> int:
    """Pieces that flash attention's forward splits the keys into, 0 where it does not.

    Where blocks = b a ceil(s / 64) fill less than 80 % of 2 SMs slots: the smallest number of pieces that reaches 85 %
    of the best occupancy.

    Source: flash_attn/flash_api.cpp, set_params_splitkv and num_splits_heuristic (FlashAttention 2). Assumes: equally
    many queries and keys, no dropout.
    """
    if not may_split(batch, heads, seq_len, sms):
        return 0
    blocks = batch * heads * _ceil_div(seq_len, 64)
    slots = 2 * sms
    keys = _ceil_div(seq_len, 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64)
    eligible = [
        n
        for n in range(1, min(128, slots, keys) + 1)
        if n == 1 or _ceil_div(keys, n) != _ceil_div(keys, n - 1)
    ]
    occupancy = {n: blocks * n / slots / _ceil_div(blocks * n, slots) for n in eligible}
    chosen = next(n for n in eligible if occupancy[n] >= 0.85 * max(occupancy.values()))
    return chosen if chosen > 1 else 0


def may_split(batch: Any, heads: int, seq_len: Any, sms: int = DEFAULT_SMS) -> Any:
    """Whether the blocks of flash attention's forward leave so many slots idle that it may split the keys."""
    return batch * heads * _ceil_div(seq_len, 64) < 0.8 * 2 * sms


def efficient_backward_scratch(
    batch: Any, heads: Any, seq_len: Any, head_dim: Any, element_bytes: int
) -> Any:
    """Workspace of the efficient kernel's backward: dq in fp32 by tiles, and per split dk and dv for heads above 128.

    Per head and batch: ceil(s / m) c tiles of 4 m n + 16 bytes. m = n = 64 and c = 1 for d <= 64; above m = 128 with, in
    half precision up to 128, n = 128 and c = 1, else n = 64 and c = ceil(d / 64), at least 2. Half precision above
    128 adds 2 x 4 x 64 round128(d) for each of min(ceil(s / 64), 200 // (b a)) splits.

    Source: mem_eff_attention/kernel_backward.h, Params::workspace_size; attention_backward.cu. Assumes: compute
    capability 8.0 or 9.0; equally many queries and keys. Equal to all 140 recorded on an H100 (benchmarks/gpu_recordings).
    """
    pairs, small, wide = batch * heads, head_dim <= 64, head_dim > 128
    half = element_bytes == 2
    by_128 = _ceil_div(seq_len, 128)
    columns = np.maximum(_ceil_div(head_dim, 64), 2)
    medium = by_128 * (65552 if half else 32784 * 2)
    tiles = np.where(small, _ceil_div(seq_len, 64) * 16400, np.where(wide, by_128 * columns * 32784, medium))
    splits = np.maximum(np.minimum(_ceil_div(seq_len, 64), 200 // pairs), 1)
    splits = np.where((pairs >= 256) & (seq_len <= 128), 1, splits)
    extra = np.where(wide & half, splits * 2 * 4 * 64 * (_ceil_div(head_dim, 128) * 128), 0)
    return pairs * (tiles + extra)


def cudnn_backward_scratch(batch: Any, heads: Any, kv_heads: Any, seq_len: Any, head_dim: Any) -> Any:
    """Workspace of cuDNN attention's backward: 4 b a s d (dq) + 4 b a s + 256, and 4 b a s d (dk, dv) if k < a.

    Assumes: cuDNN 9.19 on compute capability 9.0. Equal to all 84 recorded on an H100 (benchmarks/gpu_recordings).
    """
    rows = 4 * batch * heads * seq_len
    return rows * head_dim * np.where(kv_heads < heads, 2, 1) + rows + 256
