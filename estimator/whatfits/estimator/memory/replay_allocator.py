"""The state of PyTorch's CUDA caching allocator, changed by one allocation or free at a time.

`CachingAllocator` is what both modes share: best fit, splitting, merging, and release and retry when the device
refuses memory. `ClassicAllocator` grows by whole segments (cudaMalloc); `replay_expandable` grows by pages.

Source: c10/cuda/CUDACachingAllocator.cpp at pytorch commit 001074d25084fdb87a799823e395a50f5ec044d3 (malloc,
get_free_block, alloc_block, alloc_found_block, free_block, try_merge_blocks, release_cached_blocks).

Representation: a free block is one integer, `size << 52 | address`, in the sorted list of its pool, so that
bisection finds the smallest block that fits and, among equals, the lowest address. Two dictionaries know the
free blocks by start and by end; a freed block finds its free neighbours there.
"""

import copy
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

from whatfits.estimator.errors import WhatfitsError
from whatfits.estimator.memory.replay_rules import SMALL_BLOCK_LIMIT_BYTES, pool_number, segment_bytes

ADDRESS_BITS: Final = 52
ADDRESS_MASK: Final = (1 << ADDRESS_BITS) - 1
ORIGIN: Final = 1 << 50
"""Internal address of a segment placed at 0; made-up addresses descend from here."""


class CapacityExceededError(WhatfitsError):
    """The device refused memory, and again after every cached block was released: out of memory."""


class Extent(NamedTuple):
    """A range of device memory by internal address: a segment or an expandable range."""

    address: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialSegment:
    """A segment that exists before the first event.

    `blocks` are its allocated blocks as (block id, offset, block bytes, requested bytes), ascending; what lies
    between them is free.
    """

    base: int
    num_bytes: int
    stream: int
    is_small: bool
    blocks: tuple[tuple[int, int, int, int], ...]


def internal_address(base: int, offset: int = 0) -> int:
    """The internal address of an offset in a segment placed at `base`.

    Doubling the base keeps the order of segments and leaves a gap between them, so that blocks of two segments
    that the device placed side by side can never merge.
    """
    return ORIGIN + 2 * base + offset


class CachingAllocator(ABC):
    """Pools of free blocks, the allocated blocks, and their running totals.

    Attributes:
        allocated_bytes: sum of the allocated blocks, the device's memory_allocated().
        reserved_bytes: sum of segments or mapped ranges, the device's memory_reserved().
        peak_allocated_bytes, peak_reserved_bytes: their largest values so far.
        peak_block: the block whose allocation first reached peak_allocated_bytes; None at the start.
        num_alloc_retries: how often the device refused memory and cached blocks were released.
        smallest_refused_bytes: the smallest capacity under which the events so far would have gone otherwise.
        growth: segments allocated or ranges mapped, in order.
        live: allocated blocks by block id, as (address, block bytes, pool).
    """

    __slots__ = (
        "_capacity", "_end_to_start", "_free", "_next_address", "_place_segment", "_start_to_size", "allocated_bytes",
        "growth", "live", "num_alloc_retries", "peak_allocated_bytes", "peak_block", "peak_reserved_bytes",
        "reserved_bytes", "smallest_refused_bytes",
    )  # fmt: skip
    _split_above: ClassVar[tuple[int, int]]
    """A remainder above this many bytes is split off: in the large pool, in the small pool."""

    def __init__(
        self, *, capacity_bytes: int | None = None, place_segment: Callable[[int], int] | None = None
    ) -> None:
        """Start empty.

        Args:
            capacity_bytes: the device refuses to let reserved_bytes exceed this; None for no limit.
            place_segment: from the size of a new segment (or address space of expandable ranges) to its internal
                address; made-up descending addresses by default.
        """
        self.set_capacity(capacity_bytes)
        self._place_segment = place_segment
        self._next_address = ORIGIN
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self._start_to_size: dict[int, int] = {}
        self._end_to_start: dict[int, int] = {}
        self.live: dict[int, tuple[int, int, int]] = {}
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.peak_block: int | None = None
        self.num_alloc_retries = 0
        self.smallest_refused_bytes: int | None = None
        self.growth: list[Extent] = []

    def copy(self, *, capacity_bytes: int | None = None) -> Self:
        """One in the same state that goes its own way from here on, with a capacity of its own."""
        twin = copy.copy(self)
        twin.unshare()
        twin.set_capacity(capacity_bytes)
        return twin

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """From here on the device refuses to let reserved_bytes exceed this; None for no limit."""
        self._capacity: float = float("inf") if capacity_bytes is None else capacity_bytes

    def unshare(self) -> None:
        """Hold state of its own, where it was that of the one this is a shallow copy of."""
        self._free = defaultdict(list, {pool: keys.copy() for pool, keys in self._free.items()})
        self._start_to_size = self._start_to_size.copy()
        self._end_to_start = self._end_to_start.copy()
        self.live = self.live.copy()
        self.growth = self.growth.copy()

    def allocate(self, block: int, size: int, pool: int) -> int:
        """Allocate `size` bytes (a multiple of 512) from `pool` as `block`; return the internal address.

        Best fit in the pool, else new memory; a large enough remainder is split off.

        Raises:
            CapacityExceededError: the device refused, also after all cached blocks were released.
        """
        free = self._free[pool]
        index = bisect_left(free, size << ADDRESS_BITS)
        if index < len(free):
            index = self._choose(free, index)
        else:
            self._grow_or_retry(pool, size)
            index = len(free) - 1  # nothing cached was large enough, so the new block is the largest
        key = free.pop(index)
        address = key & ADDRESS_MASK
        num_bytes = key >> ADDRESS_BITS
        del self._start_to_size[address]
        remainder = num_bytes - size
        if remainder > self._split_above[pool & 1]:
            rest = address + size
            self._start_to_size[rest] = remainder
            self._end_to_start[address + num_bytes] = rest
            insort(free, remainder << ADDRESS_BITS | rest, 0, index)
            num_bytes = size
        else:
            del self._end_to_start[address + num_bytes]
        self.live[block] = (address, num_bytes, pool)
        self.allocated_bytes += num_bytes
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
            self.peak_block = block
        return address

    def free(self, block: int) -> None:
        """Return an allocated block to its pool, merged with its free neighbours."""
        address, num_bytes, pool = self.live.pop(block)
        self.allocated_bytes -= num_bytes
        self._add_free(pool, address, num_bytes)

    def release_cached(self) -> list[Extent]:
        """Give back to the device what is wholly free, in the device's order; return the released ranges.

        Large pool before small pool, each by stream, then size, then address. Happens when the device refuses
        memory, and in torch.cuda.empty_cache().
        """
        released: list[Extent] = []
        for pool in sorted(self._free, key=lambda number: (number & 1, number)):
            released += self._release_pool(pool)
        self.reserved_bytes -= sum(extent.num_bytes for extent in released)
        return released

    def free_blocks(self) -> dict[int, tuple[int, int]]:
        """The cached free blocks, as address -> (block bytes, pool)."""
        return {
            key & ADDRESS_MASK: (key >> ADDRESS_BITS, pool)
            for pool, keys in self._free.items()
            for key in keys
        }

    @abstractmethod
    def _choose(self, free: list[int], index: int) -> int:
        """The index of the block to use, when the one at `index` is the smallest that fits."""

    @abstractmethod
    def _grow(self, pool: int, size: int) -> bool:
        """Get device memory for a free block of at least `size`; False when the device refuses."""

    @abstractmethod
    def _release_pool(self, pool: int) -> list[Extent]:
        """Remove from a pool what can be given back to the device, in order."""

    def _grow_or_retry(self, pool: int, size: int) -> None:
        if self._grow(pool, size):
            return
        self.num_alloc_retries += 1
        self.release_cached()
        if not self._grow(pool, size):
            raise CapacityExceededError

    def _reserve(self, num_bytes: int) -> bool:
        reserved = self.reserved_bytes + num_bytes
        if reserved > self._capacity:
            if self.smallest_refused_bytes is None or reserved < self.smallest_refused_bytes:
                self.smallest_refused_bytes = reserved
            return False
        self.reserved_bytes = reserved
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, reserved)
        return True

    def _add_free(self, pool: int, address: int, num_bytes: int) -> None:
        free = self._free[pool]
        starts = self._start_to_size
        ends = self._end_to_start
        end = address + num_bytes
        if address in ends:
            before = ends.pop(address)
            size = address - before
            del free[bisect_left(free, size << ADDRESS_BITS | before)]
            address = before
        if end in starts:
            size = starts.pop(end)
            del free[bisect_left(free, size << ADDRESS_BITS | end)]
            end += size
        num_bytes = end - address
        starts[address] = num_bytes
        ends[end] = address
        insort(free, num_bytes << ADDRESS_BITS | address)

    def _remove_free(self, pool: int, address: int) -> int:
        num_bytes = self._start_to_size.pop(address)
        del self._end_to_start[address + num_bytes]
        free = self._free[pool]
        del free[bisect_left(free, num_bytes << ADDRESS_BITS | address)]
        return num_bytes

    def _place(self, num_bytes: int) -> int:
        if self._place_segment is not None:
            return self._place_segment(num_bytes)
        self._next_address -= num_bytes + SMALL_BLOCK_LIMIT_BYTES  # a gap, so that segments never touch
        return self._next_address


class ClassicAllocator(CachingAllocator):
    """Segments from cudaMalloc, given back only when wholly free."""

    __slots__ = ("_segments",)
    _split_above = (SMALL_BLOCK_LIMIT_BYTES, 0)

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        place_segment: Callable[[int], int] | None = None,
        initial: Iterable[InitialSegment] = (),
    ) -> None:
        """Start from the segments in `initial`; see CachingAllocator for the other arguments."""
        super().__init__(capacity_bytes=capacity_bytes, place_segment=place_segment)
        self._segments: dict[int, int] = {}
        for segment in initial:
            self._load(segment)
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def unshare(self) -> None:
        """Hold state of its own; see CachingAllocator."""
        super().unshare()
        self._segments = self._segments.copy()

    def _load(self, segment: InitialSegment) -> None:
        base = internal_address(segment.base)
        pool = pool_number(segment.stream, 0 if segment.is_small else SMALL_BLOCK_LIMIT_BYTES + 1)
        self._segments[base] = segment.num_bytes
        self.reserved_bytes += segment.num_bytes
        reached = 0
        for block, offset, num_bytes, _ in segment.blocks:
            if offset > reached:
                self._add_free(pool, base + reached, offset - reached)
            self.live[block] = (base + offset, num_bytes, pool)
            self.allocated_bytes += num_bytes
            reached = offset + num_bytes
        if segment.num_bytes > reached:
            self._add_free(pool, base + reached, segment.num_bytes - reached)

    def _choose(self, free: list[int], index: int) -> int:  # noqa: ARG002  the other mode looks further
        return index

    def _grow(self, pool: int, size: int) -> bool:
        num_bytes = segment_bytes(size)
        if not self._reserve(num_bytes):
            return False
        address = self._place(num_bytes)
        self._segments[address] = num_bytes
        self.growth.append(Extent(address, num_bytes))
        self._add_free(pool, address, num_bytes)
        return True

    def _release_pool(self, pool: int) -> list[Extent]:
        whole = [
            Extent(key & ADDRESS_MASK, key >> ADDRESS_BITS)
            for key in self._free[pool]
            if self._segments.get(key & ADDRESS_MASK) == key >> ADDRESS_BITS
        ]
        for segment in whole:
            self._remove_free(pool, segment.address)
            del self._segments[segment.address]
        return whole
