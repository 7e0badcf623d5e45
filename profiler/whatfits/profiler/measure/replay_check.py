"""Replay an allocator's own recorded allocations and compare where each block and each new segment went."""

from typing import Any

from whatfits.estimator.memory.replay import replay
from whatfits.estimator.memory.replay_allocator import ClassicAllocator, internal_address
from whatfits.estimator.memory.replay_rules import block_bytes, pool_number
from whatfits.profiler.measure.allocator_history import AllocatorTrace
from whatfits.profiler.measure.events import EventList

__all__ = ["check_replay"]

_FAR = 1 << 48
"""Address for a segment the replay wants and the device did not ask for."""


def check_replay(trace: AllocatorTrace, events: EventList) -> dict[str, Any]:
    """Peaks of a free replay of the events, and placements when the device's segments are given addresses as recorded.

    Assumes: recorded from an empty allocator, and no expandable segments.
    """
    free_running = replay(events.replay_events())
    pending: list[tuple[int, int]] = []
    allocator = ClassicAllocator(
        place_segment=lambda num_bytes: pending[0][0] if pending else internal_address(_FAR, 2 * num_bytes)
    )
    counts = {"placements": 0, "placements_exact": 0, "segments": 0, "segments_exact": 0}
    block_at: dict[int, int] = {}
    columns = zip(trace.actions, trace.sizes, trace.addresses, trace.streams, strict=True)
    for number, (action, size, recorded_address, stream) in enumerate(columns):
        if action == "S":
            pending.append((internal_address(0) + recorded_address, size))
            counts["segments"] += 1
        elif action == "a":
            allocator.growth.clear()
            wanted = internal_address(0) + recorded_address
            block_size = block_bytes(size)
            address = allocator.allocate(number, block_size, pool_number(stream, block_size))
            grown = [(extent.address, extent.num_bytes) for extent in allocator.growth]
            counts["segments_exact"] += sum(x == y for x, y in zip(grown, pending, strict=False))
            counts["placements"] += 1
            counts["placements_exact"] += address == wanted
            block_at[recorded_address] = number
            pending.clear()
        elif action == "f" and recorded_address in block_at:
            allocator.free(block_at.pop(recorded_address))
        elif action == "F":
            counts["segments_released"] = counts.get("segments_released", 0) + 1
    return {
        **counts,
        "replayed_peak_allocated_bytes": free_running.peak_allocated_bytes,
        "replayed_peak_reserved_bytes": free_running.peak_reserved_bytes,
        "replayed_final_reserved_bytes": free_running.final_reserved_bytes,
        "recorded_final_segment_bytes": sum(trace.final_segment_bytes),
    }
