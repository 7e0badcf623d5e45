"""A snapshot in the format of torch/cuda/_memory_viz.py becomes events, which the replay places as recorded."""

from typing import Any

from whatfits.profiler.measure.allocator_history import AllocatorTrace, reduce_entries
from whatfits.profiler.measure.replay_check import check_replay

BASE = 0x7F0000000000
MIB = 1 << 20


def entry(action: str, addr: int, size: int, stream: int = 0) -> dict[str, Any]:
    return {
        "action": action,
        "addr": BASE + addr,
        "size": size,
        "stream": stream,
        "time_us": 1,
        "pool_id": (0, 0),
    }


ENTRIES = [
    entry("segment_alloc", 0, 2 * MIB),
    entry("alloc", 0, 1000),
    entry("alloc", 1024, 4),
    entry("free_requested", 0, 1000),
    entry("free_completed", 0, 1000),
    entry("alloc", 0, 600),
    entry("segment_alloc", 4 * MIB, 20 * MIB),
    entry("alloc", 4 * MIB, 3 * MIB),
    {"action": "snapshot", "addr": 0, "size": 0, "stream": 0},
]
SEGMENTS = [{"total_size": 2 * MIB}, {"total_size": 20 * MIB}]


def test_entries_become_events_with_numbered_blocks() -> None:
    events = reduce_entries(ENTRIES, SEGMENTS).events()

    assert events.signed_bytes == [1000, 4, -1000, 600, 3 * MIB]
    assert events.blocks == [0, 1, 0, 2, 3]


def test_the_replay_places_every_block_and_segment_as_recorded() -> None:
    trace = reduce_entries(ENTRIES, SEGMENTS)

    checked = check_replay(trace, trace.events())

    assert (checked["placements"], checked["placements_exact"]) == (4, 4)
    assert (checked["segments"], checked["segments_exact"]) == (2, 2)
    assert checked["replayed_final_reserved_bytes"] == checked["recorded_final_segment_bytes"] == 22 * MIB


def test_a_block_that_lies_elsewhere_is_noticed() -> None:
    moved = [*ENTRIES[:5], entry("alloc", 4096, 600), *ENTRIES[6:]]
    trace = reduce_entries(moved, SEGMENTS)

    assert check_replay(trace, trace.events())["placements_exact"] == 3


def test_out_of_memory_has_no_address_and_streams_are_ranked() -> None:
    oom = {"action": "oom", "size": 5, "stream": 0, "device_free": 7}
    trace = reduce_entries([entry("alloc", 0, 8, stream=900), oom, entry("free_completed", 512, 16)])

    assert (trace.actions, trace.addresses, trace.streams) == ("aOf", [0, -1, 512], [1, 0, 0])
    assert trace.events().blocks == [0, -1]
    assert AllocatorTrace.from_json(trace.to_json()) == trace
