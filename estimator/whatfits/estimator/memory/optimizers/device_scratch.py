"""Temporaries that CUDA kernels allocate inside an operator, which a trace on another device does not show."""

from collections.abc import Iterable
from math import prod

from whatfits.estimator.memory.optimizers.frame import Frame

__all__ = [
    "DEVICE_SCRATCH",
    "column_scratch_bytes",
    "foreach_norm_bytes",
    "full_scratch_bytes",
    "record_column_reduction",
    "record_full_reduction",
]

DEVICE_SCRATCH = "device scratch"
"""Label of these temporaries."""

FP32_BYTES = 4
CHUNK = 65_536
"""Elements a multi-tensor kernel's block takes."""

MULTIPROCESSORS = 132
"""Of an H100; fewer (108 on an A100) make the scratch of wide matrices smaller, never larger."""
THREADS_PER_MULTIPROCESSOR = 2048
REDUCE_THREADS = 512
WARP = 32
VECTOR = 4
LEAST_VALUES_PER_THREAD, MOST_VALUES_PER_THREAD = 16, 256


def foreach_norm_bytes(numels: Iterable[int]) -> int:
    """Partial sums of ``torch._foreach_norm``: one fp32 number per tensor and chunk of the largest tensor.

    bytes = 4 n ceil(max e / 65536) for n tensors.

    Source: aten/src/ATen/native/cuda/ForeachReduceOp.cu, `foreach_tensor_norm_cuda`, ``output_per_tensor``.
    Assumes: parameters in fp32, bf16 or fp16, whose sums are fp32; the 1- or 2-norm.
    """
    sizes = list(numels)
    return FP32_BYTES * len(sizes) * -(-max(sizes, default=0) // CHUNK)


def full_scratch_bytes(numel: int, partial_bytes: int = FP32_BYTES) -> tuple[int, ...]:
    """Partial results and semaphores of a reduction of e contiguous elements to one: none below 256 a thread.

    bytes = (p c, 4) with c = min(4 x multiprocessors, ceil(v / 16)) blocks, v = e / 512 values a thread.

    Source: aten/src/ATen/native/cuda/Reduce.cuh, `setReduceConfig`, `global_memory_size`, `semaphore_size`.
    Assumes: vectorised loads, an H100's multiprocessors.
    """
    values = -(-numel // REDUCE_THREADS)
    if values < MOST_VALUES_PER_THREAD:
        return ()
    return (partial_bytes * _blocks_per_output(values, REDUCE_THREADS, 1), FP32_BYTES)


def column_scratch_bytes(rows: int, columns: int) -> tuple[int, ...]:
    """Partial results and semaphores of a reduction of m x n over its rows, to n numbers.

    bytes = (4 n c w, 4 g) with c blocks per output, w = 32 threads x vector of 4 along the columns, g = grid width.

    Source: aten/src/ATen/native/cuda/Reduce.cuh, `setReduceConfig`, `global_memory_size`, `semaphore_size`.
    Assumes: fp32 partial sums, contiguous rows, an H100's multiprocessors.
    """
    vector = next(v for v in (VECTOR, 2, 1) if columns % v == 0)
    threads, outputs = REDUCE_THREADS // vector, columns // vector
    height = min(_power_below(rows, threads), threads // min(_power_below(outputs, threads), WARP))
    width = min(_power_below(outputs, threads), threads // height)
    values = -(-rows // height)
    if values < MOST_VALUES_PER_THREAD:
        return ()
    grid = -(-outputs // width)
    blocks = _blocks_per_output(values, width * height, grid)
    return (FP32_BYTES * columns * blocks * width * vector, FP32_BYTES * grid)


def record_full_reduction(frame: Frame, shape: tuple[int, ...], partial_bytes: int = FP32_BYTES) -> None:
    """The scratch of a norm, mean or any of a whole tensor, after its output is there."""
    _record(frame, full_scratch_bytes(prod(shape), partial_bytes))


def record_column_reduction(frame: Frame, shape: tuple[int, ...]) -> None:
    """The scratch of a norm or mean over the rows of a matrix, after its output is there."""
    _record(frame, column_scratch_bytes(*shape))


def _record(frame: Frame, sizes: tuple[int, ...]) -> None:
    blocks = [frame.temporary(nbytes, DEVICE_SCRATCH) for nbytes in sizes]
    frame.free(*reversed(blocks))


def _blocks_per_output(values_per_thread: int, threads: int, grid: int) -> int:
    """How many blocks share one output: enough to fill the device, each thread with 16 to 256 values."""
    target = MULTIPROCESSORS * (THREADS_PER_MULTIPROCESSOR // threads)
    blocks = min(-(-target // grid), -(-values_per_thread // LEAST_VALUES_PER_THREAD))
    return max(blocks, -(-values_per_thread // MOST_VALUES_PER_THREAD))


def _power_below(size: int, limit: int) -> int:
    """The largest power of two up to a size, at most the limit."""
    return limit if size >= limit else 1 << (size.bit_length() - 1)
