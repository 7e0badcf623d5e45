"""One small case for each rule of c10/cuda/CUDACachingAllocator.cpp, with numbers from its constants."""

from collections.abc import Callable

import pytest

from whatfits.estimator.memory.replay_allocator import (
    CachingAllocator,
    CapacityExceededError,
    ClassicAllocator,
    Extent,
    InitialSegment,
    internal_address,
)
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.units import KIB, MIB

LARGE = 0
SMALL = 1


def ascending() -> Callable[[int], int]:
    """A device that places segments one after the other, with a gap, from 0."""
    taken = 0

    def place(num_bytes: int) -> int:
        nonlocal taken
        address, taken = taken, taken + num_bytes + MIB
        return address

    return place


def make_classic(capacity_bytes: int | None = None) -> ClassicAllocator:
    return ClassicAllocator(capacity_bytes=capacity_bytes, place_segment=ascending())


def make_expandable(capacity_bytes: int | None = None) -> ExpandableAllocator:
    return ExpandableAllocator(capacity_bytes=capacity_bytes, place_segment=lambda _: 0)


def fill_and_free(allocator: CachingAllocator, *sizes: int, pool: int = LARGE) -> None:
    """Leave one free segment per size, in order."""
    for block, size in enumerate(sizes, start=1000):
        allocator.allocate(block, size, pool)
    for block in range(1000, 1000 + len(sizes)):
        allocator.free(block)


def test_the_smallest_block_that_fits_is_used() -> None:
    allocator = make_classic()
    fill_and_free(allocator, 40 * MIB, 12 * MIB, 16 * MIB)

    address = allocator.allocate(1, 14 * MIB, LARGE)

    assert address == allocator.growth[2].address
    assert allocator.reserved_bytes == 68 * MIB


def test_among_equal_blocks_the_lowest_address_is_used() -> None:
    allocator = make_classic()
    fill_and_free(allocator, 12 * MIB, 12 * MIB)

    assert allocator.allocate(1, 12 * MIB, LARGE) == allocator.growth[0].address


def test_the_small_pool_splits_off_512_bytes() -> None:
    allocator = make_classic()

    allocator.allocate(1, MIB, SMALL)
    allocator.allocate(2, MIB - 512, SMALL)
    allocator.allocate(3, 512, SMALL)

    assert allocator.allocated_bytes == allocator.reserved_bytes == 2 * MIB


@pytest.mark.parametrize(
    ("size", "allocated"),
    [(19 * MIB, 20 * MIB), (19 * MIB - 512, 19 * MIB - 512)],  # 1 MiB stays, 1 MiB + 512 is split off
)
def test_the_large_pool_splits_off_more_than_1_mib(size: int, allocated: int) -> None:
    allocator = make_classic()

    allocator.allocate(1, size, LARGE)

    assert allocator.allocated_bytes == allocated
    assert allocator.reserved_bytes == 20 * MIB


def test_a_small_request_never_uses_the_large_pool() -> None:
    allocator = make_classic()
    fill_and_free(allocator, 20 * MIB)

    allocator.allocate(1, 512, SMALL)

    assert allocator.reserved_bytes == 22 * MIB


def test_a_block_is_reused_on_its_own_stream_only() -> None:
    allocator = make_classic()
    fill_and_free(allocator, 20 * MIB, pool=2)

    allocator.allocate(1, 20 * MIB, 0)
    assert allocator.reserved_bytes == 40 * MIB
    allocator.allocate(2, 20 * MIB, 2)
    assert allocator.reserved_bytes == 40 * MIB


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (1, 3, 2), (2, 1, 3)])
def test_freed_neighbours_merge(order: tuple[int, int, int]) -> None:
    allocator = make_classic()
    for block in (1, 2, 3):
        allocator.allocate(block, 4 * MIB, LARGE)

    for block in order:
        allocator.free(block)

    assert allocator.free_blocks() == {0: (20 * MIB, LARGE)}


def test_blocks_of_segments_side_by_side_do_not_merge() -> None:
    segments = [
        InitialSegment(
            base=base,
            num_bytes=20 * MIB,
            stream=0,
            is_small=False,
            blocks=((base, 0, 20 * MIB, 20 * MIB),),
        )
        for base in (0, 20 * MIB)
    ]
    allocator = ClassicAllocator(initial=segments)

    allocator.free(0)
    allocator.free(20 * MIB)

    assert sorted(size for size, _ in allocator.free_blocks().values()) == [20 * MIB, 20 * MIB]


def test_initial_segments_hold_blocks_and_the_free_space_between() -> None:
    segment = InitialSegment(
        base=0, num_bytes=20 * MIB, stream=1, is_small=False, blocks=((7, 2 * MIB, 4 * MIB, 4 * MIB - 1),)
    )

    allocator = ClassicAllocator(initial=[segment])

    assert allocator.reserved_bytes == allocator.peak_reserved_bytes == 20 * MIB
    assert allocator.allocated_bytes == allocator.peak_allocated_bytes == 4 * MIB
    assert allocator.free_blocks() == {
        internal_address(0): (2 * MIB, 2),
        internal_address(0, 6 * MIB): (14 * MIB, 2),
    }


def test_refused_memory_releases_cached_segments_and_tries_again() -> None:
    allocator = make_classic(capacity_bytes=40 * MIB)
    fill_and_free(allocator, 20 * MIB)

    allocator.allocate(1, 30 * MIB, LARGE)

    assert allocator.num_alloc_retries == 1
    assert allocator.reserved_bytes == 30 * MIB
    assert allocator.peak_reserved_bytes == 30 * MIB
    assert allocator.smallest_refused_bytes == 50 * MIB


def test_a_segment_in_use_is_not_released() -> None:
    allocator = make_classic(capacity_bytes=40 * MIB)
    allocator.allocate(1, 4 * MIB, LARGE)

    with pytest.raises(CapacityExceededError):
        allocator.allocate(2, 30 * MIB, LARGE)

    assert allocator.num_alloc_retries == 1
    assert allocator.reserved_bytes == 20 * MIB


def test_memory_up_to_the_capacity_is_granted() -> None:
    allocator = make_classic(capacity_bytes=40 * MIB)

    allocator.allocate(1, 40 * MIB, LARGE)

    assert allocator.num_alloc_retries == 0


def test_release_goes_through_the_large_pool_by_stream_size_and_address_then_the_small_pool() -> None:
    allocator = make_classic()
    sizes_and_pools = [(512, 1), (30 * MIB, 2), (40 * MIB, 0), (30 * MIB, 0), (30 * MIB, 0), (512, 3)]
    for block, (size, pool) in enumerate(sizes_and_pools):
        allocator.allocate(block, size, pool)
    for block in range(len(sizes_and_pools)):
        allocator.free(block)

    released = allocator.release_cached()

    assert released == [allocator.growth[i] for i in (3, 4, 2, 1, 0, 5)]
    assert allocator.reserved_bytes == 0


@pytest.mark.parametrize(
    ("size", "pool", "mapped"),
    [
        (512, SMALL, 2 * MIB),
        (15 * MIB, LARGE, 20 * MIB),
        (20 * MIB, LARGE, 20 * MIB),
        (41 * MIB, LARGE, 60 * MIB),
    ],
)
def test_expandable_maps_pages_of_2_and_20_mib(size: int, pool: int, mapped: int) -> None:
    allocator = make_expandable()

    allocator.allocate(1, size, pool)

    assert allocator.growth == [Extent(0, mapped)]
    assert allocator.allocated_bytes == size  # 512 B and more is always split off


def test_expandable_maps_only_what_the_free_tail_lacks() -> None:
    allocator = make_expandable()
    allocator.allocate(1, 15 * MIB, LARGE)  # leaves 5 MiB of its page

    address = allocator.allocate(2, 25 * MIB, LARGE)

    assert address == 15 * MIB
    assert allocator.growth[1:] == [Extent(20 * MIB, 20 * MIB)]
    assert allocator.free_blocks() == {}


@pytest.mark.parametrize(("inner_is_free", "expected"), [(True, 0), (False, 50 * MIB)])
def test_expandable_prefers_a_larger_inner_block_to_the_tail(inner_is_free: bool, expected: int) -> None:
    allocator = make_expandable()
    allocator.allocate(1, 30 * MIB, LARGE)
    allocator.allocate(2, 20 * MIB, LARGE)  # 60 MiB mapped: a tail of 10 MiB is free
    if inner_is_free:
        allocator.free(1)

    assert allocator.allocate(3, 5 * MIB, LARGE) == expected


def make_expandable_with_a_hole() -> ExpandableAllocator:
    """After a refusal: 40 MiB unmapped, 10 MiB free, 5 MiB in use, 5 MiB free, all else unmapped."""
    allocator = make_expandable(capacity_bytes=60 * MIB)
    allocator.allocate(1, 50 * MIB, LARGE)
    allocator.allocate(2, 5 * MIB, LARGE)
    allocator.free(1)
    assert allocator.release_cached() == [Extent(0, 40 * MIB)]
    return allocator


def test_expandable_release_unmaps_whole_pages_of_a_free_block() -> None:
    allocator = make_expandable_with_a_hole()

    assert allocator.reserved_bytes == 20 * MIB
    assert allocator.free_blocks() == {40 * MIB: (10 * MIB, LARGE), 55 * MIB: (5 * MIB, LARGE)}


def test_expandable_maps_again_at_the_lowest_address_with_room() -> None:
    allocator = make_expandable_with_a_hole()

    assert allocator.allocate(3, 50 * MIB, LARGE) == 0
    assert allocator.growth[-1] == Extent(0, 40 * MIB)
    assert allocator.reserved_bytes == 60 * MIB


def test_expandable_runs_out_when_no_pages_are_left_to_unmap() -> None:
    allocator = make_expandable_with_a_hole()

    with pytest.raises(CapacityExceededError):
        allocator.allocate(3, 55 * MIB, LARGE)  # the hole and the 10 MiB after it are too short by 5 MiB

    assert allocator.num_alloc_retries == 1
    assert allocator.reserved_bytes == 20 * MIB


def test_expandable_pools_are_apart() -> None:
    allocator = ExpandableAllocator()

    allocator.allocate(1, 512, SMALL)
    allocator.allocate(2, 2 * MIB, LARGE)
    allocator.allocate(3, 512, 3)

    assert [extent.num_bytes for extent in allocator.growth] == [2 * MIB, 20 * MIB, 2 * MIB]


def test_an_expandable_release_joins_unmapped_pages() -> None:
    allocator = make_expandable()
    for block in (1, 2, 3):
        allocator.allocate(block, 20 * MIB, LARGE)
    for block in (1, 3, 2):
        allocator.free(block)
        allocator.release_cached()

    allocator.allocate(4, 30 * MIB + 256 * KIB, LARGE)

    assert allocator.growth[3:] == [Extent(0, 40 * MIB)]
