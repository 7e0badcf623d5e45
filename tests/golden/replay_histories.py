"""Replay recorded device histories of the CUDA caching allocator and compare them step by step.

    python tests/golden/replay_histories.py [DIR]

Each history (see snapshots/README.md for the format) is replayed from its own initial blocks. Compared are the
place of every allocation, the size of every new segment (or place and size of every mapped range), the ordered
list of every release, and every final block. Exit status 1 when anything differs.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from whatfits.estimator.memory.replay_allocator import (
    CachingAllocator,
    ClassicAllocator,
    InitialSegment,
    internal_address,
)
from whatfits.estimator.memory.replay_expandable import ExpandableAllocator
from whatfits.estimator.memory.replay_rules import (
    SMALL_BLOCK_LIMIT_BYTES,
    SMALL_SEGMENT_BYTES,
    block_bytes,
    pool_number,
)

SNAPSHOTS = Path(__file__).parent / "snapshots"
Row = list[Any]  # JSON: [action, segment, offset, size, stream, block id or segment base]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A recorded history: its header (JSON object) and its rows."""

    name: str
    header: dict[str, Any]  # JSON
    rows: list[Row]

    @property
    def initial(self) -> tuple[InitialSegment, ...]:
        """The segments before the first row; block ids are -1 - (internal address)."""
        return tuple(_initial_segment(segment) for segment in self.header["initial_segments"])


@dataclass(slots=True, kw_only=True)
class Comparison:
    """How many things were compared and how many of them were exact; `misses` names the first differences."""

    placements: int = 0
    placements_exact: int = 0
    segments: int = 0
    segments_exact: int = 0
    releases: int = 0
    releases_exact: int = 0
    final_blocks: int = 0
    final_blocks_exact: int = 0
    peaks_exact: bool = False
    misses: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs."""
        return self.peaks_exact and not self.misses


def load_history(path: Path) -> History:
    """Read a gzipped JSON-lines history."""
    with gzip.open(path, "rt") as lines:
        header, *rows = map(json.loads, lines)
    ranks = _stream_ranks(rows)
    for row in rows:
        row[4] = ranks.get(row[4], row[4])
    for segment in header["initial_segments"]:
        segment[1] = ranks.get(segment[1], segment[1])
    return History(name=path.name.removesuffix(".jsonl.gz"), header=header, rows=rows)


def _stream_ranks(rows: list[Row]) -> dict[int, int]:
    """New numbers for the streams, in the order in which the device releases their segments.

    The device orders streams by handle; the rows number them by first appearance. The order is read from the
    releases and must be the same in all of them, in the large pool and in the small pool.
    """
    before: dict[int, set[int]] = {row[4]: set() for row in rows if row[0] == "a"}
    for previous, row in pairwise(rows):
        same_pool = (previous[3] == SMALL_SEGMENT_BYTES) == (row[3] == SMALL_SEGMENT_BYTES)
        if previous[0] == row[0] == "F" and previous[4] != row[4] and same_pool:
            before[row[4]].add(previous[4])
    return {stream: rank for rank, stream in enumerate(TopologicalSorter(before).static_order())}


def _initial_segment(segment: list[Any]) -> InitialSegment:
    """A segment of the header; 0 bytes stands for a block whose size was never recorded (see README.md)."""
    num_bytes, stream, is_small, blocks, base = segment
    ends = [offset for offset, _, _ in blocks] + [num_bytes]
    resolved = []
    for (offset, recorded_size, requested), end in zip(blocks, ends[1:], strict=True):
        size = recorded_size or block_bytes(requested)
        if not recorded_size and not is_small and end - offset - size <= SMALL_BLOCK_LIMIT_BYTES:
            size = end - offset  # the rest is too little to have been split off
        resolved.append((-1 - internal_address(base, offset), offset, size, requested))
    return InitialSegment(
        base=base, num_bytes=num_bytes, stream=stream, is_small=bool(is_small), blocks=tuple(resolved)
    )


class HistoryReplay:
    """Replays one history on an allocator that is told where the device put new segments."""

    def __init__(self, history: History, *, capacity_bytes: int | None = None) -> None:
        self.history = history
        self.comparison = Comparison()
        self.allocator: CachingAllocator
        if history.header["expandable"]:
            self.allocator = ExpandableAllocator(
                capacity_bytes=capacity_bytes, place_segment=self._place_address_range
            )
        else:
            self.allocator = ClassicAllocator(
                capacity_bytes=capacity_bytes, place_segment=self._place_segment, initial=history.initial
            )
        self._bases = {i: segment.base for i, segment in enumerate(history.initial)}
        self._block_at = {place[0]: block for block, place in self.allocator.live.items()}
        self._requested = {block[0]: block[3] for segment in history.initial for block in segment.blocks}
        self._recorded_growth: list[tuple[int, int]] = []
        self._recorded_release: list[tuple[int, int]] = []
        self._requested_bytes = self._peak_requested_bytes = sum(self._requested.values())

    def run(self) -> Comparison:
        """Replay every row, then compare the final blocks and the peaks."""
        handlers = {
            "S": self._on_growth, "M": self._on_growth, "F": self._on_release, "U": self._on_release,
            "a": self._on_alloc, "f": self._on_free, "O": self._on_out_of_memory,
        }  # fmt: skip
        for index, row in enumerate(self.history.rows):
            action = row[0]
            if self._recorded_release and action not in "FU":
                self._compare_release(index)
            if action in handlers:  # free_requested precedes each free_completed; snapshot changes nothing
                handlers[action](index, row)
        if self._recorded_release:
            self._compare_release(len(self.history.rows))
        self._compare_final_blocks()
        self._compare_peaks()
        return self.comparison

    def _place_segment(self, num_bytes: int) -> int:
        """Where the device put the segment; far above all others if it recorded none, which is a miss."""
        if not self._recorded_growth:
            return internal_address(1 << 48, 2 * self.allocator.reserved_bytes)
        return self._recorded_growth[0][0]

    def _place_address_range(self, num_bytes: int) -> int:
        return self._recorded_growth[0][0]

    def _address(self, row: Row) -> int:
        if self.history.header["expandable"]:
            return internal_address(0, row[2])
        return internal_address(self._bases[row[1]], row[2])

    def _on_growth(self, index: int, row: Row) -> None:
        if row[0] == "S":
            self._bases[row[1]] = row[5]
        self._recorded_growth.append((self._address(row), row[3]))

    def _on_release(self, index: int, row: Row) -> None:
        self._recorded_release.append((self._address(row), row[3]))

    def _on_alloc(self, index: int, row: Row) -> None:
        _, _, _, requested, stream, block = row
        size = block_bytes(requested)
        self.allocator.growth.clear()
        address = self.allocator.allocate(block, size, pool_number(stream, size))
        self._compare_growth(index)
        self.comparison.placements += 1
        if address == self._address(row):
            self.comparison.placements_exact += 1
        else:
            self._miss(index, f"placed at {address}, device at {self._address(row)}")
        self._block_at[self._address(row)] = block
        self._requested[block] = requested
        self._requested_bytes += requested
        self._peak_requested_bytes = max(self._peak_requested_bytes, self._requested_bytes)

    def _on_free(self, index: int, row: Row) -> None:
        block = self._block_at.pop(self._address(row))
        self._requested_bytes -= self._requested.pop(block)
        self.allocator.free(block)

    def _on_out_of_memory(self, index: int, row: Row) -> None:
        """The device released before it gave up; a release that gave nothing back left no row."""
        if released := self.allocator.release_cached():
            self._miss(index, f"released {len(released)} ranges before running out of memory, device none")

    def _compare_growth(self, index: int) -> None:
        grown = [tuple(extent) for extent in self.allocator.growth]
        exact = sum(ours == theirs for ours, theirs in zip(grown, self._recorded_growth, strict=False))
        self.comparison.segments += len(self._recorded_growth)
        self.comparison.segments_exact += exact
        if grown != self._recorded_growth:
            self._miss(index, f"new memory {grown}, device {self._recorded_growth}")
        self._recorded_growth.clear()

    def _compare_release(self, index: int) -> None:
        released = [tuple(extent) for extent in self.allocator.release_cached()]
        self.comparison.releases += 1
        if released == self._recorded_release:
            self.comparison.releases_exact += 1
        else:
            self._miss(
                index, f"released {len(released)} ranges, device {len(self._recorded_release)} or others"
            )
        self._recorded_release = []

    def _compare_final_blocks(self) -> None:
        recorded = set(self._recorded_final_blocks())
        ours = {(place[0], place[1], self._requested[block]) for block, place in self.allocator.live.items()}
        ours |= {(address, size, -1) for address, (size, _) in self.allocator.free_blocks().items()}
        self.comparison.final_blocks = len(recorded)
        self.comparison.final_blocks_exact = len(recorded & ours)
        if recorded != ours:
            self._miss(len(self.history.rows), f"{len(recorded ^ ours)} final blocks differ")

    def _recorded_final_blocks(self) -> Iterator[tuple[int, int, int]]:
        """Final blocks as (address, bytes, requested bytes, or -1 when free)."""
        for _, _, _, blocks, base in self.history.header["final_segments"]:
            for offset, size, requested, in_use in blocks:
                address = (
                    internal_address(0, base + offset)
                    if self.history.header["expandable"]
                    else internal_address(base, offset)
                )
                yield address, size, requested if in_use else -1

    def _compare_peaks(self) -> None:
        header = self.history.header
        ours = (
            self._peak_requested_bytes, self.allocator.peak_allocated_bytes, self.allocator.peak_reserved_bytes
        )  # fmt: skip
        recorded = (header["peak_requested"], header["peak_allocated"], header["peak_reserved"])
        self.comparison.peaks_exact = ours == recorded
        if ours != recorded:
            self._miss(len(self.history.rows), f"peaks {ours}, device {recorded}")

    def _miss(self, index: int, text: str) -> None:
        self.comparison.misses.append(f"row {index}: {text}")


def main(arguments: list[str]) -> int:
    """Compare every history in a directory; print a table; 1 when anything differs."""
    directory = Path(arguments[0]) if arguments else SNAPSHOTS
    comparisons = []
    titles = ("placements".rjust(15), "new segments".rjust(13), "releases", "final blocks".rjust(13), "peaks")
    print(f"{'history':78}  " + "  ".join(titles))
    for path in sorted(directory.glob("*.jsonl.gz")):
        history = load_history(path)
        comparison = HistoryReplay(history).run()
        comparisons.append((history, comparison))
        print(_table_row(history.name, [comparison]))
        for miss in comparison.misses[:3]:
            print(f"    {miss}")
    for mode, expandable in (("classic", False), ("expandable", True)):
        chosen = [
            comparison for history, comparison in comparisons if history.header["expandable"] is expandable
        ]
        print(_table_row(f"total {mode}, {len(chosen)} histories", chosen))
    return 0 if comparisons and all(comparison.is_exact for _, comparison in comparisons) else 1


def _table_row(name: str, comparisons: list[Comparison]) -> str:
    def pair(what: str, width: int) -> str:
        exact = sum(getattr(comparison, f"{what}_exact") for comparison in comparisons)
        total = sum(getattr(comparison, what) for comparison in comparisons)
        return f"{exact}/{total}".rjust(width)

    peaks = "exact" if all(comparison.peaks_exact for comparison in comparisons) else "differ"
    columns = (
        pair("placements", 15),
        pair("segments", 13),
        pair("releases", 8),
        pair("final_blocks", 13),
        peaks,
    )
    return f"{name[:78]:78}  " + "  ".join(columns)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
