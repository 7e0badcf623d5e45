"""Expandable segments of PyTorch's CUDA caching allocator (PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True).

Each pool of a stream has one long range of addresses, of which pages are mapped when needed and unmapped when
the device refuses memory: 2 MiB pages in the small pool, 20 MiB pages in the large pool.

Source: c10/cuda/CUDACachingAllocator.cpp at pytorch commit 001074d25084fdb87a799823e395a50f5ec044d3
(ExpandableSegment, find_expandable_block, map_block, try_allocate_expandable_block, get_free_block, unmap_block,
release_blocks). Assumes: the address range never ends (the device reserves 1 1/8 of its memory).
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from whatfits.estimator.memory.replay_allocator import ADDRESS_BITS, ADDRESS_MASK, CachingAllocator, Extent
from whatfits.estimator.memory.replay_rules import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES

ADDRESS_RANGE_BYTES: Final = 1 << 42
"""Length of a pool's range of addresses: 4 TiB, more than any device maps."""


class ExpandableAllocator(CachingAllocator):
    """One growing range of pages per pool and stream."""

    __slots__ = ("_range_starts", "_unmapped", "_unmapped_sizes")
    _split_above = (0, 0)

    def __init__(
        self, *, capacity_bytes: int | None = None, place_segment: Callable[[int], int] | None = None
    ) -> None:
        """Start empty; see CachingAllocator for the arguments."""
        super().__init__(capacity_bytes=capacity_bytes, place_segment=place_segment)
        self._range_starts: dict[int, int] = {}
        self._unmapped: defaultdict[int, list[int]] = defaultdict(list)
        self._unmapped_sizes: dict[int, int] = {}

    def unshare(self) -> None:
        """Hold state of its own; see CachingAllocator."""
        super().unshare()
        self._range_starts = self._range_starts.copy()
        self._unmapped = defaultdict(list, {pool: holes.copy() for pool, holes in self._unmapped.items()})
        self._unmapped_sizes = self._unmapped_sizes.copy()

    def _choose(self, free: list[int], index: int) -> int:
        """Prefer a larger block inside the range to a smaller one that could still grow.

        A block before unmapped pages counts as its own size plus theirs, so the search moves on as long as the
        next block counts for less.
        """
        counted = self._counted_bytes(free[index])
        for following in range(index + 1, len(free)):
            next_counted = self._counted_bytes(free[following])
            if next_counted >= counted:
                return following - 1
            counted = next_counted
        return len(free) - 1

    def _counted_bytes(self, key: int) -> int:
        size = key >> ADDRESS_BITS
        return size + self._unmapped_sizes.get((key & ADDRESS_MASK) + size, 0)

    def _grow(self, pool: int, size: int) -> bool:
        """Map what is missing at the lowest address where free and unmapped space together suffice."""
        start = self._lowest_room(pool, size)
        while (mapped := self._start_to_size.get(start, 0)) < size:
            hole = start + mapped
            if not self._map(pool, hole, min(size - mapped, self._unmapped_sizes[hole])):
                return False
        return True

    def _lowest_room(self, pool: int, size: int) -> int:
        if pool not in self._range_starts:
            start = self._range_starts[pool] = self._place(ADDRESS_RANGE_BYTES)
            self._unmapped[pool] = [start]
            self._unmapped_sizes[start] = ADDRESS_RANGE_BYTES
        for hole in self._unmapped[pool]:
            start = reached = self._end_to_start.get(hole, hole)
            while reached - start < size:
                step = self._start_to_size.get(reached) or self._unmapped_sizes.get(reached)
                if step is None:
                    break
                reached += step
            else:
                return start
        raise MemoryError(f"no room for {size} bytes in an address range of {ADDRESS_RANGE_BYTES} bytes")

    def _map(self, pool: int, address: int, num_bytes: int) -> bool:
        page = _page_bytes(pool)
        num_bytes = -(-num_bytes // page) * page
        if not self._reserve(num_bytes):
            return False
        left = self._unmapped_sizes.pop(address) - num_bytes
        self._unmapped[pool].remove(address)
        if left:
            insort(self._unmapped[pool], address + num_bytes)
            self._unmapped_sizes[address + num_bytes] = left
        self.growth.append(Extent(address, num_bytes))
        self._add_free(pool, address, num_bytes)
        return True

    def _release_pool(self, pool: int) -> list[Extent]:
        """Unmap the whole pages inside each free block; what is left of the block stays cached."""
        released = []
        page = _page_bytes(pool)
        for key in list(self._free[pool]):
            address = key & ADDRESS_MASK
            end = address + (key >> ADDRESS_BITS)
            range_start = self._range_starts[pool]
            first = range_start - (range_start - address) // page * page
            last = range_start + (end - range_start) // page * page
            if first >= last:
                continue
            self._remove_free(pool, address)
            if address < first:
                self._add_free(pool, address, first - address)
            if last < end:
                self._add_free(pool, last, end - last)
            self._add_unmapped(pool, first, last - first)
            released.append(Extent(first, last - first))
        return released

    def _add_unmapped(self, pool: int, address: int, num_bytes: int) -> None:
        holes = self._unmapped[pool]
        sizes = self._unmapped_sizes
        index = bisect_left(holes, address)
        if index < len(holes) and holes[index] == address + num_bytes:
            num_bytes += sizes.pop(holes.pop(index))
        if index > 0 and holes[index - 1] + sizes[holes[index - 1]] == address:
            sizes[holes[index - 1]] += num_bytes
            return
        holes.insert(index, address)
        sizes[address] = num_bytes


def _page_bytes(pool: int) -> int:
    return SMALL_SEGMENT_BYTES if pool & 1 else LARGE_SEGMENT_BYTES
