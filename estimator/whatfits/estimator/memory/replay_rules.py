"""Size rules and constants of PyTorch's CUDA caching allocator.

Source: c10/cuda/CUDACachingAllocator.cpp at pytorch commit 001074d25084fdb87a799823e395a50f5ec044d3
(constants kMinBlockSize .. kRoundLarge; round_size, get_pool, get_allocation_size). The same constants
stand in c10/core/AllocatorConfig.h of torch 2.13. Default settings are assumed throughout: no
max_split_size_mb, no roundup_power2_divisions, no garbage_collection_threshold.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_GRANULARITY_BYTES: Final = 512
"""kMinBlockSize: every block is a multiple of this."""
SMALL_BLOCK_LIMIT_BYTES: Final = 1 << 20
"""kSmallSize: the largest block served from the small pool."""
SMALL_SEGMENT_BYTES: Final = 2 << 20
"""kSmallBuffer: segment size, and expandable page size, of the small pool."""
LARGE_SEGMENT_BYTES: Final = 20 << 20
"""kLargeBuffer: segment size for large blocks under 10 MiB, and expandable page size of the large pool."""
LARGE_SEGMENT_LIMIT_BYTES: Final = 10 << 20
"""kMinLargeAlloc: blocks from here on get a segment of their own size."""
SEGMENT_GRANULARITY_BYTES: Final = 2 << 20
"""kRoundLarge: segments of their own size are multiples of this."""


def block_bytes(requested_bytes: int) -> int:
    """Bytes of the block that serves a request: 512 * max(1, ceil(requested / 512)).

    Source: round_size, CUDACachingAllocator.cpp.
    Assumes: roundup_power2_divisions is not set.
    """
    units = max(1, -(-requested_bytes // BLOCK_GRANULARITY_BYTES))
    return units * BLOCK_GRANULARITY_BYTES


def segment_bytes(block: int) -> int:
    """Bytes that cudaMalloc is asked for when no cached block can serve a block of this size.

    2 MiB up to 1 MiB; 20 MiB below 10 MiB; else the block rounded up to 2 MiB.

    Source: get_allocation_size, CUDACachingAllocator.cpp.
    Assumes: large_segment_size_mb is not set.
    """
    if block <= SMALL_BLOCK_LIMIT_BYTES:
        return SMALL_SEGMENT_BYTES
    if block < LARGE_SEGMENT_LIMIT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-block // SEGMENT_GRANULARITY_BYTES) * SEGMENT_GRANULARITY_BYTES


def pool_number(stream: int, block: int) -> int:
    """The pool that serves a block: 2 * stream, plus 1 for the small pool.

    Source: get_pool and BlockComparatorSize, CUDACachingAllocator.cpp: two pools, each ordered by stream
    first, so that a block never serves a request of another stream.
    """
    return 2 * stream + (block <= SMALL_BLOCK_LIMIT_BYTES)


def block_bytes_array(requested_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """`block_bytes` of each element."""
    units = np.maximum(1, -(-requested_bytes // BLOCK_GRANULARITY_BYTES))
    return units * BLOCK_GRANULARITY_BYTES


def pool_number_array(streams: NDArray[np.int64], blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """`pool_number` of each element."""
    return 2 * streams + (blocks <= SMALL_BLOCK_LIMIT_BYTES)
