"""Two lists of events: what agrees, and where they part."""

import pytest

from whatfits.profiler.measure.compare import align, compare_events, summarise
from whatfits.profiler.measure.events import EventList


def make_events(*sizes: int) -> EventList:
    """One step's events; a negative size frees the oldest live block of that size."""
    events, live = EventList(), dict[int, list[int]]()
    for block, nbytes in enumerate(sizes):
        if nbytes > 0:
            live.setdefault(nbytes, []).append(block)
        events.add(nbytes, block if nbytes > 0 else live[-nbytes].pop(0), f"event {block}")
    events.starts = [0, 0, len(events), len(events)]
    return events


def test_equal_lists_agree_wholly() -> None:
    sections = compare_events(make_events(8, 16, -8, -16), make_events(8, 16, -8, -16))

    summary = summarise(sections)
    assert (summary["share_same"], summary["identical"], summary["first_different_section"]) == (
        1.0,
        True,
        None,
    )
    assert sections[1].predicted_peak_bytes == sections[1].measured_peak_bytes == 24


def test_a_missing_temporary_does_not_shift_what_follows() -> None:
    step = compare_events(make_events(8, 16, -16, -8), make_events(8, 512, -512, 16, -16, -8))[1]

    assert (step.num_same, step.num_same_block, step.num_moved) == (4, 4, 0)
    assert step.only_measured == ((-512, 1), (512, 1))
    assert step.only_predicted == ()
    difference = step.first_difference
    assert difference is not None
    assert (difference.predicted_index, difference.measured_index) == (1, 1)
    assert difference.measured[1] == "> 1: +512 event 1"


def test_a_different_size_is_named_on_both_sides() -> None:
    step = compare_events(make_events(8, 16, -16), make_events(8, 24, -24))[1]

    assert step.num_same == 1
    assert step.only_predicted == ((-16, 1), (16, 1))
    assert step.only_measured == ((-24, 1), (24, 1))
    assert step.share_same == pytest.approx(1 / 3)


def test_reordered_events_count_as_moved() -> None:
    step = compare_events(make_events(8, 16, 32), make_events(16, 8, 32))[1]

    assert (step.num_same, step.num_moved, step.only_predicted, step.only_measured) == (2, 1, (), ())


def test_a_free_of_another_block_of_that_size_is_not_the_same_block() -> None:
    measured = make_events(8, 8, -8)
    measured.blocks[2] = 1

    step = compare_events(make_events(8, 8, -8), measured)[1]

    assert (step.num_same, step.num_same_block) == (3, 2)


@pytest.mark.parametrize(
    ("a", "b", "length"), [("ABCABBA", "CBABAC", 4), ("", "AB", 0), ("XMJYAUZ", "MZJAWXU", 4)]
)
def test_alignment_is_a_longest_common_subsequence(a: str, b: str, length: int) -> None:
    pairs, complete = align([ord(c) for c in a], [ord(c) for c in b])

    assert complete
    assert len(pairs) == length
    assert all(a[x] == b[y] for x, y in pairs)
    assert pairs == sorted(set(pairs))
