"""The replay of event lists: worked cases, refusals, and what must hold for any list."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.memory.replay import ReplayResult, Replays, allocated_curve, replay
from whatfits.estimator.memory.replay_allocator import ClassicAllocator, InitialSegment
from whatfits.estimator.memory.replay_events import ALLOC, FREE, MalformedEventsError, ReplayEvents
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.memory.replay_program import ReplayProgram
from whatfits.estimator.memory.replay_rules import block_bytes, pool_number
from whatfits.estimator.specs import AllocatorMode
from whatfits.estimator.units import KIB, MIB

RESOLUTION = 4 * MIB


def make_events(*steps: tuple[int, int] | int, streams: list[int] | None = None) -> ReplayEvents:
    """Events from (block, size) for an allocation and a block for a free."""
    pairs = [(FREE, step, 0) if isinstance(step, int) else (ALLOC, *step) for step in steps]
    return ReplayEvents(
        kinds=np.array([kind for kind, _, _ in pairs], np.int8),
        blocks=np.array([block for _, block, _ in pairs], np.int64),
        sizes=np.array([size for _, _, size in pairs], np.int64),
        streams=None if streams is None else np.array(streams, np.int64),
    )


@st.composite
def event_lists(draw: st.DrawFn) -> ReplayEvents:
    """Up to 60 allocations and frees on two streams, of sizes around the allocator's limits."""
    size = st.one_of(
        st.integers(1, 4 * KIB),
        st.integers(MIB - KIB, 3 * MIB),
        st.integers(9 * MIB, 11 * MIB),
        st.integers(18 * MIB, 70 * MIB),
    )
    steps: list[tuple[int, int] | int] = []
    streams = []
    live: list[int] = []
    for block in range(draw(st.integers(1, 60))):
        frees = bool(live) and draw(st.integers(0, 1)) == 1
        if frees:
            steps.append(live.pop(draw(st.integers(0, len(live) - 1))))
            streams.append(0)
        else:
            steps.append((block, draw(size)))
            streams.append(draw(st.integers(0, 1)))
            live.append(block)
    return make_events(*steps, streams=streams)


modes = st.sampled_from(AllocatorMode)


def run_stepwise(events: ReplayEvents, mode: AllocatorMode) -> ClassicAllocator | ExpandableAllocator:
    """Replay one event at a time, checking after each that no two blocks overlap."""
    allocator = ClassicAllocator() if mode is AllocatorMode.CLASSIC else ExpandableAllocator()
    assert events.streams is not None
    columns = (events.kinds, events.blocks, events.sizes, events.streams)
    for kind, block, size, stream in zip(*(column.tolist() for column in columns), strict=True):
        if kind == FREE:
            allocator.free(block)
        else:
            allocator.allocate(block, block_bytes(size), pool_number(stream, block_bytes(size)))
        free = allocator.free_blocks().items()
        held = sorted([place[:2] for place in allocator.live.values()] + [(a, n) for a, (n, _) in free])
        assert all(
            address + num_bytes <= following for (address, num_bytes), (following, _) in pairwise(held)
        )
        assert sum(num_bytes for _, num_bytes in held) == allocator.reserved_bytes
        assert sum(place[1] for place in allocator.live.values()) == allocator.allocated_bytes
    return allocator


def long_history(seed: int) -> ReplayEvents:
    """2,000 allocations and frees on two streams, with two releases of cached memory in between."""
    random = np.random.default_rng(seed)
    sizes = (KIB, 300 * KIB, 3 * MIB, 10 * MIB, 25 * MIB, 70 * MIB)
    steps: list[tuple[int, int] | int] = []
    live: list[int] = []
    for block in range(2000):
        if live and random.random() < 0.48:
            steps.append(live.pop(random.integers(len(live))))
        else:
            steps.append((block, int(random.choice(sizes) * random.uniform(0.5, 1.5))))
            live.append(block)
    events = make_events(*steps, streams=random.integers(0, 2, 2000).tolist())
    return replace(events, releases=(512, 1301))


@pytest.mark.parametrize("mode", AllocatorMode)
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_that_parts_from_the_unlimited_one_does_what_it_would_do_alone(
    seed: int, mode: AllocatorMode
) -> None:
    events = long_history(seed)
    replays = Replays(events, mode=mode)
    peak = replays.at().peak_reserved_bytes

    for percent in (0, 30, 60, 80, 90, 95, 99, 100):
        capacity = peak * percent // 100
        make = ClassicAllocator if mode is AllocatorMode.CLASSIC else ExpandableAllocator
        alone = make(capacity_bytes=capacity)
        program = ReplayProgram.of(events)
        failed_at = program.run(alone)
        found = replays.at(capacity)
        assert (found.failed_at, found.num_alloc_retries) == (failed_at, alone.num_alloc_retries)
        assert (found.peak_reserved_bytes, found.final_reserved_bytes, found.peak_allocated_bytes) == (
            alone.peak_reserved_bytes,
            alone.reserved_bytes,
            alone.peak_allocated_bytes,
        )
    assert replays.at(peak).failed_at is None


def test_peaks_of_a_worked_case() -> None:
    events = make_events((1, 100), (2, 3 * MIB), 1, (3, 19 * MIB), 2, 3)

    result = replay(events)

    # 512 B in a 2 MiB segment; 3 MiB in a 20 MiB one, whose other 17 MiB are too few for 19; those take a
    # segment of 20 MiB whole, because 1 MiB is not split off.
    assert result == ReplayResult(
        peak_requested_bytes=22 * MIB,
        peak_allocated_bytes=23 * MIB,
        peak_reserved_bytes=42 * MIB,
        final_reserved_bytes=42 * MIB,
        num_alloc_retries=0,
        failed_at=None,
        peak_event=3,
    )


def test_expandable_peaks_of_the_same_case() -> None:
    events = make_events((1, 100), (2, 3 * MIB), 1, (3, 19 * MIB), 2, 3)

    result = replay(events, mode=AllocatorMode.EXPANDABLE)

    assert result.peak_allocated_bytes == 22 * MIB
    assert result.peak_reserved_bytes == 42 * MIB  # 2 MiB and two pages of 20 MiB


def test_running_out_of_memory_names_the_event_and_keeps_the_peaks_before_it() -> None:
    result = replay(make_events((1, 30 * MIB), (2, 20 * MIB), 1), capacity_bytes=40 * MIB)

    assert result.failed_at == 1
    assert result.num_alloc_retries == 1
    assert (
        result.peak_requested_bytes == result.peak_allocated_bytes == result.peak_reserved_bytes == 30 * MIB
    )
    assert result.peak_event == 0


def test_a_request_of_0_bytes_takes_no_memory_and_keeps_event_indices() -> None:
    result = replay(make_events((1, 0), (2, 20 * MIB), 1, (3, 30 * MIB)), capacity_bytes=40 * MIB)

    assert result.failed_at == 3
    assert result.peak_event == 1


def test_no_events_take_no_memory() -> None:
    result = replay(make_events())

    assert result.peak_reserved_bytes == 0
    assert result.peak_event is None
    assert Replays(make_events()).required_reserved_bytes() == 0


def test_initial_segments_count_and_their_blocks_can_be_freed() -> None:
    initial = InitialSegment(
        base=0, num_bytes=20 * MIB, stream=0, is_small=False, blocks=((9, 0, 20 * MIB, 19 * MIB),)
    )

    result = replay(make_events(9, (1, 20 * MIB)), initial=[initial])

    assert result.peak_requested_bytes == 20 * MIB
    assert result.peak_allocated_bytes == result.peak_reserved_bytes == 20 * MIB
    assert result.peak_event is None  # reached before the first event


def test_required_is_less_than_unlimited_when_release_helps() -> None:
    events = make_events((1, 20 * MIB), 1, (2, 30 * MIB), 2, (3, 40 * MIB))

    assert replay(events).peak_reserved_bytes == 90 * MIB
    assert Replays(events).required_reserved_bytes() == 40 * MIB


def test_required_is_found_between_the_bounds() -> None:
    # 11 MiB of the first segment stay reserved, because 9 MiB are in use. Without a limit the last block goes
    # into the 100 MiB segment; with one, that has been released before.
    events = make_events((1, 9 * MIB), (2, 9 * MIB), 1, (3, 100 * MIB), 3, (4, 150 * MIB), (5, 30 * MIB))

    assert replay(events).peak_allocated_bytes == 189 * MIB
    assert replay(events).peak_reserved_bytes == 270 * MIB
    assert Replays(events).required_reserved_bytes(resolution_bytes=1) == 200 * MIB


@pytest.mark.parametrize(
    ("kinds", "blocks", "sizes", "streams", "message"),
    [
        ([1], [1, 2], [3], None, r"different lengths: \[1, 2\]"),
        ([1], [1], [3], [0, 0], r"different lengths: \[1, 2\]"),
        ([3], [1], [3], None, "kinds other than 1 and 2"),
        ([1, 2, 1], [5, 5, 5], [3, 0, 3], None, "block 5 is allocated more than once"),
        ([1], [1], [-3], None, "negative size: -3"),
        ([1], [1], [3], [-2], "negative stream: -2"),
    ],
)
def test_malformed_events_are_refused(
    kinds: list[int], blocks: list[int], sizes: list[int], streams: list[int] | None, message: str
) -> None:
    with pytest.raises(MalformedEventsError, match=message):
        ReplayEvents(
            kinds=np.array(kinds, np.int8),
            blocks=np.array(blocks),
            sizes=np.array(sizes),
            streams=None if streams is None else np.array(streams),
        )


@pytest.mark.parametrize("events", [make_events(4), make_events((4, 10), 4, 4)])
def test_freeing_what_is_not_allocated_is_refused(events: ReplayEvents) -> None:
    with pytest.raises(MalformedEventsError, match="block 4 is freed but not allocated"):
        replay(events)


def test_initial_segments_are_refused_in_expandable_mode() -> None:
    initial = InitialSegment(base=0, num_bytes=20 * MIB, stream=0, is_small=False, blocks=())

    with pytest.raises(MalformedEventsError, match="classic mode only"):
        replay(make_events(), mode=AllocatorMode.EXPANDABLE, initial=[initial])


@given(event_lists(), modes)
def test_requested_is_at_most_allocated_is_at_most_reserved(
    events: ReplayEvents, mode: AllocatorMode
) -> None:
    result = replay(events, mode=mode)

    assert result.peak_requested_bytes <= result.peak_allocated_bytes <= result.peak_reserved_bytes


@given(event_lists(), modes)
def test_the_curve_is_what_an_allocator_holds_after_each_event(
    events: ReplayEvents, mode: AllocatorMode
) -> None:
    curve = allocated_curve(events, mode=mode)

    assert len(curve) == len(events.kinds)
    if len(curve):
        assert curve.max() == replay(events, mode=mode).peak_allocated_bytes
        assert curve[-1] == run_stepwise(events, mode).allocated_bytes


@given(event_lists(), modes)
def test_frees_return_everything(events: ReplayEvents, mode: AllocatorMode) -> None:
    allocator = run_stepwise(events, mode)

    for block in list(allocator.live):
        allocator.free(block)
    released = sum(extent.num_bytes for extent in allocator.release_cached())

    assert allocator.allocated_bytes == 0
    assert released == sum(extent.num_bytes for extent in allocator.growth)
    assert allocator.reserved_bytes == 0
    assert allocator.free_blocks() == {}


@given(event_lists(), modes, st.integers(0, 100 * MIB))
def test_a_capacity_of_the_unlimited_peak_or_more_changes_nothing(
    events: ReplayEvents, mode: AllocatorMode, more: int
) -> None:
    unlimited = replay(events, mode=mode)

    assert replay(events, mode=mode, capacity_bytes=unlimited.peak_reserved_bytes + more) == unlimited


@given(event_lists(), modes, st.integers(0, 300 * MIB))
def test_reserved_stays_within_the_capacity(events: ReplayEvents, mode: AllocatorMode, capacity: int) -> None:
    assert replay(events, mode=mode, capacity_bytes=capacity).peak_reserved_bytes <= capacity


@given(event_lists(), modes)
def test_required_completes_and_lies_between_allocated_and_unlimited_reserved(
    events: ReplayEvents, mode: AllocatorMode
) -> None:
    unlimited = replay(events, mode=mode)

    required = Replays(events, mode=mode).required_reserved_bytes(resolution_bytes=RESOLUTION)

    assert unlimited.peak_allocated_bytes <= required <= unlimited.peak_reserved_bytes
    assert replay(events, mode=mode, capacity_bytes=required).failed_at is None


def test_releases_give_unused_segments_back_before_the_event_they_name() -> None:
    large = 64 << 20
    kinds = np.array([ALLOC, FREE, ALLOC], dtype=np.int8)
    blocks, sizes = np.array([0, 0, 1]), np.array([large, 0, 2 * large])

    kept = replay(ReplayEvents(kinds=kinds, blocks=blocks, sizes=sizes))
    released = replay(ReplayEvents(kinds=kinds, blocks=blocks, sizes=sizes, releases=(0, 2)))
    at_the_end = replay(ReplayEvents(kinds=kinds[:2], blocks=blocks[:2], sizes=sizes[:2], releases=(2,)))

    assert (kept.peak_reserved_bytes, released.peak_reserved_bytes) == (3 * large, 2 * large)
    assert (kept.final_reserved_bytes, at_the_end.final_reserved_bytes) == (3 * large, 0)


@pytest.mark.parametrize("releases", [(2, 1), (-1,), (4,)])
def test_releases_outside_the_events_are_refused(releases: tuple[int, ...]) -> None:
    with pytest.raises(MalformedEventsError, match="releases"):
        ReplayEvents(
            kinds=np.array([ALLOC, FREE, ALLOC], dtype=np.int8),
            blocks=np.array([0, 0, 1]),
            sizes=np.array([1, 0, 1]),
            releases=releases,
        )
