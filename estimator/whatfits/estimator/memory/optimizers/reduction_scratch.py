"""What CUDA's reductions (sum, mean, norm) allocate inside their kernel: partial results and semaphores.

A reduction with few outputs and many inputs for each is split over thread blocks, which meet in a buffer of the
allocator's. Where the rows of a matrix are reduced to one, that buffer can outweigh the matrix.

Source: aten/src/ATen/native/cuda/Reduce.cuh, `setReduceConfig`, `ReduceConfig::global_memory_size` and
`semaphore_size`. Checked against reductions recorded on an H100, benchmarks/gpu_recordings (`ops`).
"""

from functools import lru_cache
from typing import NamedTuple

__all__ = ["NO_SCRATCH", "ReductionScratch", "columns_reduction_scratch", "whole_reduction_scratch"]

NUM_SMS = 132
THREADS_PER_SM = 2048
"""Of an H100. Another device splits a reduction into another number of blocks, at most in proportion."""

MAX_THREADS = 512
WARP = 32
MIN_VALUES_PER_THREAD = 16
MAX_VALUES_PER_THREAD = 256
INPUT_VECTOR = 4
OUTPUT_VECTOR = 4
PARTIAL_BYTES = 4
"""Sums are fp32, whatever the tensor's precision."""

SEMAPHORE_BYTES = 4


class ReductionScratch(NamedTuple):
    """Bytes of the two blocks, allocated in this order and freed in reverse; zeros where nothing is split."""

    partials: int
    semaphores: int


NO_SCRATCH = ReductionScratch(0, 0)


@lru_cache(maxsize=4096)
def whole_reduction_scratch(numel: int) -> ReductionScratch:
    """A contiguous tensor reduced to one number: partials = 4 b bytes for b blocks, semaphores = 4.

    b = max(min(528, ceil(v / 16)), ceil(v / 256)) for v = ceil(e / 512) values per thread, if v >= 256.

    Source: see the module.
    Assumes: an H100; fp32 partial results; more than 512 elements.
    """
    width = min(MAX_THREADS, _last_power_of_two(max(1, numel // INPUT_VECTOR)))
    blocks = _blocks_per_output(-(-numel // width), grid=1, num_threads=width)
    if blocks == 1:
        return NO_SCRATCH
    return ReductionScratch(PARTIAL_BYTES * blocks, SEMAPHORE_BYTES)


@lru_cache(maxsize=4096)
def columns_reduction_scratch(rows: int, columns: int) -> ReductionScratch:
    """A contiguous matrix summed over its rows, to one number per column: 4 n b (w v) bytes and 4 g semaphores.

    n columns are read in vectors of v = 4 (2, 1 where 4, 2 does not divide n) by g blocks of width w; b blocks share
    the rows. The factor w v is there because threads of one warp hold different columns.

    Source: see the module.
    Assumes: an H100; fp32 partial results; a contiguous matrix.
    """
    vector = next(size for size in (OUTPUT_VECTOR, 2, 1) if columns % size == 0)
    vectors = columns // vector
    limit = MAX_THREADS // vector
    widest = min(limit, _last_power_of_two(vectors))
    height = min(limit, _last_power_of_two(rows), limit // min(widest, WARP))
    width = min(widest, limit // height)
    if rows < min(height * MIN_VALUES_PER_THREAD, MAX_VALUES_PER_THREAD):
        return NO_SCRATCH
    grid = -(-vectors // width)
    blocks = _blocks_per_output(-(-rows // height), grid=grid, num_threads=width * height)
    if blocks == 1:
        return NO_SCRATCH
    return ReductionScratch(PARTIAL_BYTES * columns * blocks * width * vector, SEMAPHORE_BYTES * grid)


def _blocks_per_output(values_per_thread: int, *, grid: int, num_threads: int) -> int:
    target = NUM_SMS * (THREADS_PER_SM // num_threads)
    if values_per_thread < MAX_VALUES_PER_THREAD or grid > target:
        return 1
    enough = min(-(-target // grid), -(-values_per_thread // MIN_VALUES_PER_THREAD))
    return max(enough, -(-values_per_thread // MAX_VALUES_PER_THREAD))


def _last_power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
