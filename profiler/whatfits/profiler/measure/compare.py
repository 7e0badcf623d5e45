"""Hold two lists of events against each other: what agrees, in order, and the first place where something does not.

The alignment is the shortest edit script of the two lists of signed sizes (E. W. Myers, "An O(ND) Difference
Algorithm and Its Variations", Algorithmica 1, 1986), section by section, so that a temporary that only one side has
does not shift all that follows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whatfits.profiler.measure.events import EventList, Section

__all__ = ["FirstDifference", "SectionComparison", "align", "compare_events", "summarise"]

_MOST_EDITS = 3000
_CONTEXT = 10
_MOST_LISTED = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDifference:
    """Where the lists part, with the events around as text."""

    predicted_index: int
    measured_index: int
    predicted: tuple[str, ...]
    measured: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionComparison:
    """One section of two runs.

    num_same: events of equal size and kind in the common order. num_same_block: those of them whose free also
    releases the block that was allocated at the same place. num_moved: events both sides have, at another place.
    only_predicted, only_measured: counts of what is left, as (bytes, count), the largest share of bytes first; -n bytes
    is a free.
    """

    name: str
    num_predicted: int
    num_measured: int
    num_same: int
    num_same_block: int
    num_moved: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    only_predicted: tuple[tuple[int, int], ...]
    only_measured: tuple[tuple[int, int], ...]
    first_difference: FirstDifference | None
    complete: bool

    @property
    def share_same(self) -> float:
        """Share of both lists that agrees; 1 for two empty ones."""
        total = self.num_predicted + self.num_measured
        return 2 * self.num_same / total if total else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "share_same": self.share_same}


def align(predicted: Sequence[int], measured: Sequence[int]) -> tuple[list[tuple[int, int]], bool]:
    """Pairs of indices of a longest common subsequence, and whether the search was complete.

    Beyond `_MOST_EDITS` edits only the common beginning and end are paired.
    """
    start, shorter = 0, min(len(predicted), len(measured))
    while start < shorter and predicted[start] == measured[start]:
        start += 1
    end = 0
    while end < shorter - start and predicted[-1 - end] == measured[-1 - end]:
        end += 1
    inner = _middle(predicted[start : len(predicted) - end], measured[start : len(measured) - end])
    pairs = [(j, j) for j in range(start)]
    pairs += [(start + x, start + y) for x, y in inner or ()]
    pairs += [(len(predicted) - j, len(measured) - j) for j in range(end, 0, -1)]
    return pairs, inner is not None


def _middle(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]] | None:
    """Myers' greedy search; `furthest[k]` is how far along `a` the best path on diagonal k = x - y has come."""
    furthest = {1: 0}
    history: list[dict[int, int]] = []
    for num_edits in range(min(len(a) + len(b), _MOST_EDITS) + 1):
        history.append(dict(furthest))
        for k in range(-num_edits, num_edits + 1, 2):
            down = k == -num_edits or (k != num_edits and furthest[k - 1] < furthest[k + 1])
            x = furthest[k + 1] if down else furthest[k - 1] + 1
            y = x - k
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x, y = x + 1, y + 1
            furthest[k] = x
            if x >= len(a) and y >= len(b):
                return _walk_back(history, x, y)
    return None


def _walk_back(history: list[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for num_edits in range(len(history) - 1, -1, -1):
        furthest, k = history[num_edits], x - y
        down = k == -num_edits or (k != num_edits and furthest[k - 1] < furthest[k + 1])
        before = k + 1 if down else k - 1
        from_x = furthest[before]
        from_y = from_x - before
        while x > max(from_x, 0) and y > max(from_y, 0):
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = from_x, from_y
    pairs.reverse()
    return pairs


def compare_events(predicted: EventList, measured: EventList) -> list[SectionComparison]:
    """Compare section by section."""
    partner: dict[int, int] = {}
    return [
        _compare_section(predicted, measured, ours, theirs, partner)
        for ours, theirs in zip(predicted.sections(), measured.sections(), strict=True)
    ]


def _compare_section(
    predicted: EventList, measured: EventList, ours: Section, theirs: Section, partner: dict[int, int]
) -> SectionComparison:
    """`partner` maps predicted blocks to the measured ones allocated at the same place, over all sections."""
    left = predicted.signed_bytes[ours.start : ours.stop]
    right = measured.signed_bytes[theirs.start : theirs.stop]
    pairs, complete = align(left, right)
    same_block = 0
    for x, y in pairs:
        our_block, their_block = predicted.blocks[ours.start + x], measured.blocks[theirs.start + y]
        if left[x] > 0:
            partner[our_block] = their_block
            same_block += 1
        else:
            same_block += partner.get(our_block) == their_block
    only_left = _left_over(left, {x for x, _ in pairs})
    only_right = _left_over(right, {y for _, y in pairs})
    return SectionComparison(
        name=ours.name,
        num_predicted=len(left),
        num_measured=len(right),
        num_same=len(pairs),
        num_same_block=same_block,
        num_moved=(only_left & only_right).total(),
        predicted_peak_bytes=predicted.peak_bytes(ours),
        measured_peak_bytes=measured.peak_bytes(theirs),
        only_predicted=_largest(only_left - only_right),
        only_measured=_largest(only_right - only_left),
        first_difference=_first_difference(predicted, measured, ours, theirs, pairs),
        complete=complete,
    )


def _left_over(signed_bytes: Sequence[int], paired: set[int]) -> Counter[int]:
    return Counter(n for j, n in enumerate(signed_bytes) if j not in paired)


def _largest(counts: Counter[int]) -> tuple[tuple[int, int], ...]:
    order = sorted(counts.items(), key=lambda item: (-abs(item[0]) * item[1], item[0]))
    return tuple(order[:_MOST_LISTED])


def _first_difference(
    predicted: EventList, measured: EventList, ours: Section, theirs: Section, pairs: list[tuple[int, int]]
) -> FirstDifference | None:
    at = next((j for j, pair in enumerate(pairs) if pair != (j, j)), len(pairs))
    if at == ours.stop - ours.start == theirs.stop - theirs.start:
        return None
    return FirstDifference(
        predicted_index=ours.start + at,
        measured_index=theirs.start + at,
        predicted=_around(predicted, ours, at),
        measured=_around(measured, theirs, at),
    )


def _around(events: EventList, section: Section, at: int) -> tuple[str, ...]:
    start = section.start + at
    first, last = max(section.start, start - _CONTEXT), min(section.stop, start + _CONTEXT + 1)
    return tuple(
        f"{'>' if j == start else ' '} {j}: {events.signed_bytes[j]:+d} {events.labels[j]}"
        for j in range(first, last)
    )


def summarise(sections: Sequence[SectionComparison]) -> dict[str, Any]:
    """One run's figures over its sections."""
    total = sum(s.num_predicted + s.num_measured for s in sections)
    same = 2 * sum(s.num_same for s in sections)
    return {
        "num_predicted": sum(s.num_predicted for s in sections),
        "num_measured": sum(s.num_measured for s in sections),
        "share_same": same / total if total else 1.0,
        "num_moved": sum(s.num_moved for s in sections),
        "identical": all(s.first_difference is None and s.num_same_block == s.num_same for s in sections),
        "first_different_section": next((s.name for s in sections if s.first_difference is not None), None),
    }
