"""Sizes from the constants of c10/cuda/CUDACachingAllocator.cpp: 512 B, 1 MiB, 2 MiB, 10 MiB, 20 MiB."""

import numpy as np
import pytest

from whatfits.estimator.memory.replay_rules import (
    block_bytes,
    block_bytes_array,
    pool_number,
    pool_number_array,
    segment_bytes,
)
from whatfits.estimator.units import MIB


@pytest.mark.parametrize(
    ("requested", "block"), [(1, 512), (512, 512), (513, 1024), (MIB - 1, MIB), (MIB + 1, MIB + 512)]
)
def test_a_request_is_rounded_up_to_512(requested: int, block: int) -> None:
    assert block_bytes(requested) == block
    assert block_bytes_array(np.array([requested], np.int64)).tolist() == [block]


@pytest.mark.parametrize(
    ("block", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (100 * MIB - 512, 100 * MIB),
    ],
)
def test_a_segment_is_2_or_20_mib_or_a_multiple_of_2(block: int, segment: int) -> None:
    assert segment_bytes(block) == segment


@pytest.mark.parametrize(
    ("stream", "block", "pool"), [(0, MIB, 1), (0, MIB + 512, 0), (3, 512, 7), (3, 2 * MIB, 6)]
)
def test_each_stream_has_a_large_and_a_small_pool(stream: int, block: int, pool: int) -> None:
    assert pool_number(stream, block) == pool
    assert pool_number_array(np.array([stream]), np.array([block])).tolist() == [pool]
