"""Replay of PyTorch's CUDA caching allocator over a list of allocations and frees.

Gives the peaks of requested, allocated and reserved bytes that a device would report, and the smallest
capacity at which the events complete. Pure Python on dictionaries and bisection.

Source: c10/cuda/CUDACachingAllocator.cpp at pytorch commit 001074d25084fdb87a799823e395a50f5ec044d3; default
settings, apart from expandable segments. Assumes: a freed block is reusable at once (no record_stream delay).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.errors import WhatfitsError
from whatfits.estimator.memory.replay_allocator import (
    CachingAllocator,
    CapacityExceededError,
    ClassicAllocator,
    InitialSegment,
)
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.memory.replay_rules import (
    SEGMENT_GRANULARITY_BYTES,
    block_bytes_array,
    pool_number_array,
)
from whatfits.estimator.specs import AllocatorMode

ALLOC: Final = 1
FREE: Final = 2
DEFAULT_RESOLUTION_BYTES: Final = 4 << 20


class MalformedEventsError(WhatfitsError):
    """The events do not describe allocations and frees of known blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEvents:
    """Allocations and frees in order, one element of each array per event.

    Attributes:
        kinds: ALLOC (1) or FREE (2).
        blocks: block id; each id is allocated at most once.
        sizes: requested bytes of an ALLOC; ignored for a FREE. A request of 0 bytes takes no memory.
        streams: stream number, 0 or more; ignored for a FREE.
        releases: indices of the events before which the unused segments are released (`torch.cuda.empty_cache`),
            ascending.
    """

    kinds: NDArray[np.int8]
    blocks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    streams: NDArray[np.int64] | None = None
    releases: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse arrays of different lengths, unknown kinds, ids allocated twice, negative sizes and streams."""
        if list(self.releases) != sorted(self.releases) or not all(
            0 <= r <= len(self.kinds) for r in self.releases
        ):
            raise MalformedEventsError(f"releases that are not ascending event indices: {self.releases}")
        lengths = {len(self.kinds), len(self.blocks), len(self.sizes)}
        if self.streams is not None:
            lengths.add(len(self.streams))
        if len(lengths) > 1:
            raise MalformedEventsError(f"the arrays have different lengths: {sorted(lengths)}")
        is_alloc = self.kinds == ALLOC
        if not np.all(is_alloc | (self.kinds == FREE)):
            raise MalformedEventsError(
                f"kinds other than {ALLOC} and {FREE}: {np.unique(self.kinds).tolist()}"
            )
        ids, counts = np.unique(self.blocks[is_alloc], return_counts=True)
        if np.any(counts > 1):
            raise MalformedEventsError(f"block {ids[counts > 1][0]} is allocated more than once")
        if np.any(self.sizes[is_alloc] < 0):
            raise MalformedEventsError(f"negative size: {self.sizes[is_alloc].min()}")
        if self.streams is not None and np.any(self.streams < 0):
            raise MalformedEventsError(f"negative stream: {self.streams.min()}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What the device would report after the events, or up to the event at which it ran out of memory.

    Attributes:
        peak_requested_bytes: largest sum of requested bytes.
        peak_allocated_bytes: largest sum of blocks, torch.cuda.max_memory_allocated().
        peak_reserved_bytes: largest sum of segments, torch.cuda.max_memory_reserved().
        final_reserved_bytes: sum of segments after the last event.
        num_alloc_retries: how often cached memory was released because the device refused more.
        failed_at: index of the event that ran out of memory; None when all completed.
        peak_event: index of the event that first reached peak_allocated_bytes; None if no event did.
    """

    peak_requested_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    final_reserved_bytes: int
    num_alloc_retries: int
    failed_at: int | None
    peak_event: int | None


def replay(
    events: ReplayEvents,
    *,
    mode: AllocatorMode = AllocatorMode.CLASSIC,
    capacity_bytes: int | None = None,
    initial: Sequence[InitialSegment] = (),
) -> ReplayResult:
    """Replay events against an allocator that is empty or holds the `initial` segments.

    A request for device memory fails when reserved bytes would exceed `capacity_bytes`; then cached memory is
    released and the request tried once more.

    Raises:
        MalformedEventsError: a block is freed that is not allocated, or `initial` is given in expandable mode.
    """
    program = _Program.of(events)
    allocator, stop = program.run(mode, capacity_bytes, initial)
    return ReplayResult(
        peak_requested_bytes=program.peak_requested_bytes(stop, initial),
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        final_reserved_bytes=allocator.reserved_bytes,
        num_alloc_retries=allocator.num_alloc_retries,
        failed_at=None if stop is None else int(program.event_index[stop]),
        peak_event=None
        if allocator.peak_block is None
        else int(program.event_index[program.position_of_alloc(allocator.peak_block)]),
    )


def allocated_curve(
    events: ReplayEvents, *, mode: AllocatorMode = AllocatorMode.CLASSIC
) -> NDArray[np.int64]:
    """Allocated bytes after each event, without a limit; the maximum is `peak_allocated_bytes` of `replay`."""
    program = _Program.of(events)
    allocator = _new_allocator(mode, None, ())
    releases = frozenset(program.release_positions)
    after = np.zeros(len(program.blocks) + 1, dtype=np.int64)
    for position in range(len(program.blocks)):
        if position in releases:
            allocator.release_cached()
        program.run_between(allocator, slice(position, position + 1))
        after[position + 1] = allocator.allocated_bytes
    # An event of 0 bytes changes nothing and is not in the program.
    return after[np.searchsorted(program.event_index, np.arange(len(events.kinds)), side="right")]


def required_reserved_bytes(
    events: ReplayEvents,
    *,
    mode: AllocatorMode = AllocatorMode.CLASSIC,
    resolution_bytes: int = DEFAULT_RESOLUTION_BYTES,
    initial: Sequence[InitialSegment] = (),
) -> int:
    """The smallest capacity at which the replay, with release and retry, completes.

    Searched by bisection between the peak of allocated bytes without a limit (rounded up to 2 MiB, tried first)
    and the peak of reserved bytes without a limit. The replay completes at the returned capacity, and fails at
    some capacity less than `resolution_bytes` below it, unless that is below the peak of allocated bytes.

    Assumes: what completes at a capacity completes at every larger one. That is usual but not certain: another
    capacity releases at other moments and places blocks elsewhere. To judge one capacity, replay it.
    """
    program = _Program.of(events)
    unlimited, _ = program.run(mode, None, initial)
    low = -(-unlimited.peak_allocated_bytes // SEGMENT_GRANULARITY_BYTES) * SEGMENT_GRANULARITY_BYTES
    high = unlimited.peak_reserved_bytes
    allocator, stop = program.run(mode, low, initial)
    if stop is None:
        return max(unlimited.peak_allocated_bytes, allocator.peak_reserved_bytes)
    while high - low > max(1, resolution_bytes):
        capacity = (low + high) // 2
        allocator, stop = program.run(mode, capacity, initial)
        if stop is None:
            # Any capacity from the peak of this replay up to its own capacity gives the same replay.
            high = allocator.peak_reserved_bytes
        else:
            # Any capacity from this one up to just below the smallest refused sum fails in the same way.
            refused = allocator.smallest_refused_bytes
            low = capacity if refused is None else max(capacity, refused - 1)
    return high


@dataclass(frozen=True, slots=True)
class _Program:
    """Events as plain lists for the replay loop; a free has pool -1, and requests of 0 bytes are left out."""

    blocks: list[int]
    sizes: list[int]
    pools: list[int]
    event_index: NDArray[np.int64]
    requested: NDArray[np.int64]
    release_positions: tuple[int, ...]

    @classmethod
    def of(cls, events: ReplayEvents) -> Self:
        is_alloc = events.kinds == ALLOC
        requested = np.where(is_alloc, events.sizes, 0).astype(np.int64)
        empty = events.blocks[is_alloc & (events.sizes == 0)]
        kept = np.nonzero(~np.isin(events.blocks, empty))[0] if len(empty) else np.arange(len(is_alloc))
        streams = np.zeros(len(is_alloc), np.int64) if events.streams is None else events.streams
        sizes = block_bytes_array(requested)
        pools = np.where(is_alloc, pool_number_array(streams.astype(np.int64), sizes), -1)
        positions = np.searchsorted(kept, np.array(events.releases, dtype=np.int64)).tolist()
        return cls(
            events.blocks[kept].tolist(),
            sizes[kept].tolist(),
            pools[kept].tolist(),
            kept,
            requested[kept],
            tuple(positions),
        )

    def run(
        self, mode: AllocatorMode, capacity_bytes: int | None, initial: Sequence[InitialSegment]
    ) -> tuple[CachingAllocator, int | None]:
        """The allocator after the events, and the position at which it ran out of memory, if it did."""
        allocator = _new_allocator(mode, capacity_bytes, initial)
        start = 0
        for stop in (*self.release_positions, None):
            failed_at = self.run_between(allocator, slice(start, stop))
            if failed_at is not None:
                return allocator, failed_at
            if stop is not None:
                allocator.release_cached()
                start = stop
        return allocator, None

    def run_between(self, allocator: CachingAllocator, part: slice) -> int | None:
        """Run some of the events; the position at which memory ran out, if it did."""
        allocate = allocator.allocate
        free = allocator.free
        block = 0
        try:
            for block, size, pool in zip(self.blocks[part], self.sizes[part], self.pools[part], strict=True):
                if pool < 0:
                    free(block)
                else:
                    allocate(block, size, pool)
        except CapacityExceededError:
            return self.position_of_alloc(block)
        except KeyError as error:
            raise MalformedEventsError(f"block {block} is freed but not allocated") from error
        return None

    def position_of_alloc(self, block: int) -> int:
        position = -1
        while True:
            position = self.blocks.index(block, position + 1)
            if self.pools[position] >= 0:
                return position

    def peak_requested_bytes(self, stop: int | None, initial: Sequence[InitialSegment]) -> int:
        """Largest sum of requested bytes over the events before `stop`."""
        held = {block: requested for segment in initial for block, _, _, requested in segment.blocks}
        live = peak = sum(held.values())
        requested = self.requested[:stop].tolist()
        for block, size, pool in zip(self.blocks[:stop], requested, self.pools[:stop], strict=True):
            if pool < 0:
                live -= held.pop(block)
            else:
                held[block] = size
                live += size
                peak = max(peak, live)
        return peak


def _new_allocator(
    mode: AllocatorMode, capacity_bytes: int | None, initial: Sequence[InitialSegment]
) -> CachingAllocator:
    if mode is AllocatorMode.CLASSIC:
        return ClassicAllocator(capacity_bytes=capacity_bytes, initial=initial)
    if initial:
        raise MalformedEventsError("initial segments can be given in classic mode only")
    return ExpandableAllocator(capacity_bytes=capacity_bytes)
