"""Replay of PyTorch's CUDA caching allocator over a list of allocations and frees.

Gives the peaks of requested, allocated and reserved bytes that a device would report, and the smallest
capacity at which the events complete. Pure Python on dictionaries and bisection.

Source: c10/cuda/CUDACachingAllocator.cpp at pytorch commit 001074d25084fdb87a799823e395a50f5ec044d3; default
settings, apart from expandable segments. Assumes: a freed block is reusable at once (no record_stream delay).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.replay_allocator import CachingAllocator, ClassicAllocator, InitialSegment
from whatfits.estimator.memory.replay_events import MalformedEventsError, ReplayEvents
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.memory.replay_program import ReplayProgram
from whatfits.estimator.memory.replay_rules import SEGMENT_GRANULARITY_BYTES
from whatfits.estimator.specs import AllocatorMode

__all__ = ["ReplayResult", "Replays", "allocated_curve", "replay"]

DEFAULT_RESOLUTION_BYTES: Final = 4 << 20
_CHECKPOINT_EVENTS: Final = 512
"""Measured on LLaMA-7B, 24,301 events: these take 0.46 ms, a copy of the allocator 0.07 ms."""


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


class Replays:
    """Replays of the same events by devices of several capacities.

    A device that refuses to go beyond a capacity does what one without a limit does until that would go beyond it. So the
    replay without a limit is run once, and each other from the last checkpoint before it parts from that.
    """

    def __init__(
        self,
        events: ReplayEvents,
        *,
        mode: AllocatorMode = AllocatorMode.CLASSIC,
        initial: Sequence[InitialSegment] = (),
    ) -> None:
        """Prepare; the allocator is empty at first, or holds the `initial` segments.

        Raises:
            MalformedEventsError: `initial` is given in expandable mode.
        """
        self._program = ReplayProgram.of(events)
        self._initial = tuple(initial)
        self._empty = _new_allocator(mode, initial)

    def at(self, capacity_bytes: int | None = None) -> ReplayResult:
        """The replay by a device that refuses to let reserved bytes exceed a capacity, if one is given.

        When it refuses, cached memory is released and the request tried once more.

        Raises:
            MalformedEventsError: a block is freed that is not allocated.
        """
        program = self._program
        allocator, stop = self._run(capacity_bytes)
        return ReplayResult(
            peak_requested_bytes=program.peak_requested_bytes(stop, self._initial),
            peak_allocated_bytes=allocator.peak_allocated_bytes,
            peak_reserved_bytes=allocator.peak_reserved_bytes,
            final_reserved_bytes=allocator.reserved_bytes,
            num_alloc_retries=allocator.num_alloc_retries,
            failed_at=None if stop is None else int(program.event_index[stop]),
            peak_event=None
            if allocator.peak_block is None
            else int(program.event_index[program.position_of_alloc(allocator.peak_block)]),
        )

    def required_reserved_bytes(self, *, resolution_bytes: int = DEFAULT_RESOLUTION_BYTES) -> int:
        """The smallest capacity at which the replay, with release and retry, completes.

        Searched by bisection between the peak of allocated bytes without a limit (rounded up to 2 MiB, tried first)
        and the peak of reserved bytes without a limit. The replay completes at the returned capacity, and fails at
        some capacity less than `resolution_bytes` below it, unless that is below the peak of allocated bytes.

        Assumes: what completes at a capacity completes at every larger one. That is usual but not certain: another
        capacity releases at other moments and places blocks elsewhere. To judge one capacity, replay it.
        """
        unlimited, _ = self._run(None)
        low = -(-unlimited.peak_allocated_bytes // SEGMENT_GRANULARITY_BYTES) * SEGMENT_GRANULARITY_BYTES
        high = unlimited.peak_reserved_bytes
        allocator, stop = self._run(low)
        if stop is None:
            return max(unlimited.peak_allocated_bytes, allocator.peak_reserved_bytes)
        while high - low > max(1, resolution_bytes):
            capacity = (low + high) // 2
            allocator, stop = self._run(capacity)
            if stop is None:
                # Any capacity from the peak of this replay up to its own capacity gives the same replay.
                high = allocator.peak_reserved_bytes
            else:
                # Any capacity from this one up to just below the smallest refused sum fails in the same way.
                refused = allocator.smallest_refused_bytes
                low = capacity if refused is None else max(capacity, refused - 1)
        return high

    def _run(self, capacity_bytes: int | None) -> tuple[CachingAllocator, int | None]:
        """The allocator after the events, and the position at which it ran out of memory, if it did."""
        checkpoints = self._checkpoints
        last = checkpoints[-1].allocator
        if capacity_bytes is None or capacity_bytes >= last.peak_reserved_bytes:
            return last, None
        # Their peaks ascend. Where there was more from the start on, the first serves.
        after = bisect_right(checkpoints, capacity_bytes, key=lambda c: c.allocator.peak_reserved_bytes)
        position, allocator = checkpoints[max(after - 1, 0)]
        capped = allocator.copy(capacity_bytes=capacity_bytes)
        return capped, self._program.run(capped, position)

    @cached_property
    def _checkpoints(self) -> list["_Checkpoint"]:
        """The allocator without a limit on its way, the latest for each peak of reserved bytes, and at its end."""
        allocator, count = self._empty.copy(), len(self._program.blocks)
        found = [_Checkpoint(0, self._empty)]
        for start in range(0, max(count, 1), _CHECKPOINT_EVENTS):
            stop = start + _CHECKPOINT_EVENTS
            self._program.run(allocator, start, stop if stop < count else None)
            if allocator.peak_reserved_bytes == found[-1].allocator.peak_reserved_bytes:
                found.pop()
            found.append(_Checkpoint(stop, allocator.copy()))
        return found


class _Checkpoint(NamedTuple):
    """The allocator before the event at a position."""

    position: int
    allocator: CachingAllocator


def replay(
    events: ReplayEvents,
    *,
    mode: AllocatorMode = AllocatorMode.CLASSIC,
    capacity_bytes: int | None = None,
    initial: Sequence[InitialSegment] = (),
) -> ReplayResult:
    """One replay: see `Replays`.

    Raises:
        MalformedEventsError: a block is freed that is not allocated, or `initial` is given in expandable mode.
    """
    return Replays(events, mode=mode, initial=initial).at(capacity_bytes)


def allocated_curve(
    events: ReplayEvents, *, mode: AllocatorMode = AllocatorMode.CLASSIC
) -> NDArray[np.int64]:
    """Allocated bytes after each event, without a limit; the maximum is `peak_allocated_bytes` of `replay`."""
    program = ReplayProgram.of(events)
    allocator = _new_allocator(mode, ())
    after = np.zeros(len(program.blocks) + 1, dtype=np.int64)
    for position in range(len(program.blocks)):
        program.run(allocator, position, position + 1)
        after[position + 1] = allocator.allocated_bytes
    # An event of 0 bytes changes nothing and is not in the program.
    return after[np.searchsorted(program.event_index, np.arange(len(events.kinds)), side="right")]


def _new_allocator(mode: AllocatorMode, initial: Sequence[InitialSegment]) -> CachingAllocator:
    if mode is AllocatorMode.CLASSIC:
        return ClassicAllocator(initial=initial)
    if initial:
        raise MalformedEventsError("initial segments can be given in classic mode only")
    return ExpandableAllocator()
