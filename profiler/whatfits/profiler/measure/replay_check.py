"""Replay an allocator's own recorded allocations and compare where each block, segment and release went."""

from bisect import bisect_right, insort
from typing import Any

from whatfits.estimator.memory.replay import replay
from whatfits.estimator.memory.replay_allocator import CachingAllocator, ClassicAllocator, internal_address
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.memory.replay_rules import block_bytes, pool_number
from whatfits.profiler.measure.allocator_history import AllocatorTrace
from whatfits.profiler.measure.events import EventList

__all__ = ["check_replay", "compare_placements"]

_FAR = 1 << 48
"""Address for a segment the replay wants and the device did not ask for."""


def check_replay(trace: AllocatorTrace, events: EventList) -> dict[str, Any]:
    """Peaks of a free replay of the events, and placements when the device's segments are given addresses as recorded.

    Assumes: recorded from an empty allocator.
    """
    free_running = replay(events.replay_events())
    return {
        **compare_placements(trace),
        "replayed_peak_allocated_bytes": free_running.peak_allocated_bytes,
        "replayed_peak_reserved_bytes": free_running.peak_reserved_bytes,
        "replayed_final_reserved_bytes": free_running.final_reserved_bytes,
        "recorded_final_segment_bytes": sum(trace.final_segment_bytes),
    }


def compare_placements(trace: AllocatorTrace) -> dict[str, int]:
    """How many placements, new segments (or mapped ranges) and releases there are, and how many the replay has exact.

    Assumes: recorded from an empty allocator.
    """
    return _Comparison(trace).run()


class _Comparison:
    """Drives an allocator with the recorded requests; it is told only where the device put new segments."""

    def __init__(self, trace: AllocatorTrace) -> None:
        self._trace = trace
        self._expandable = "M" in trace.actions
        make = ExpandableAllocator if self._expandable else ClassicAllocator
        self._allocator: CachingAllocator = make(place_segment=self._place)
        self._bases: list[int] = []
        self._grown: list[tuple[int, int]] = []
        self._released: list[tuple[int, int]] = []
        self._block_at: dict[int, int] = {}
        self._counts = {
            f"{what}{suffix}": 0
            for what in ("placements", "segments", "releases")
            for suffix in ("", "_exact")
        }

    def run(self) -> dict[str, int]:
        """Compare everything."""
        trace = self._trace
        streams = trace.streams or [0] * len(trace.sizes)
        rows = zip(trace.actions, trace.sizes, trace.addresses, streams, strict=True)
        for number, (action, size, address, stream) in enumerate(rows):
            if self._released and action not in "FU":
                self._compare_release()
            if action in "SM":
                insort(self._bases, address)
                self._grown.append((self._internal(address), size))
            elif action in "FU":
                self._released.append((self._internal(address), size))
                self._bases.remove(address)
            elif action == "a":
                self._allocate(number, size, address, stream)
            elif action == "f" and address in self._block_at:
                self._allocator.free(self._block_at.pop(address))
        if self._released:
            self._compare_release()
        return self._counts

    def _internal(self, address: int) -> int:
        """Where the replay has an address of the device: segments apart in classic mode, as they are in the other."""
        if self._expandable:
            return internal_address(0, address)
        base = self._bases[bisect_right(self._bases, address) - 1]
        return internal_address(base, address - base)

    def _place(self, num_bytes: int) -> int:
        return self._grown[0][0] if self._grown else internal_address(_FAR, 2 * num_bytes)

    def _allocate(self, number: int, size: int, address: int, stream: int) -> None:
        allocator, counts = self._allocator, self._counts
        allocator.growth.clear()
        block_size = block_bytes(size)
        placed = allocator.allocate(number, block_size, pool_number(stream, block_size))
        grown = [(extent.address, extent.num_bytes) for extent in allocator.growth]
        counts["segments"] += len(self._grown)
        counts["segments_exact"] += sum(x == y for x, y in zip(grown, self._grown, strict=False))
        counts["placements"] += 1
        counts["placements_exact"] += placed == self._internal(address)
        self._block_at[address] = number
        self._grown.clear()

    def _compare_release(self) -> None:
        released = [(extent.address, extent.num_bytes) for extent in self._allocator.release_cached()]
        self._counts["releases"] += 1
        self._counts["releases_exact"] += released == self._released
        self._released.clear()
