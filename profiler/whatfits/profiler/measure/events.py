"""A run's allocations and frees as plain columns, however they were recorded or predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from whatfits.estimator.memory.replay_events import ALLOC, FREE, ReplayEvents
from whatfits.profiler.measure.cases import NUM_STEPS

__all__ = ["SECTIONS", "EventList", "Section"]

SECTIONS = ("setup", *(f"step {number + 1}" for number in range(NUM_STEPS)))
"""What a run is cut into for comparison: the model's way to the device, then each step."""


@dataclass(slots=True, kw_only=True)
class Section:
    """A stretch of events."""

    name: str
    start: int
    stop: int


@dataclass(slots=True, kw_only=True)
class EventList:
    """Events in order, one element of each list per event.

    signed_bytes: +n where n bytes are allocated, -n where they are freed; blocks: a number per allocation, which its
    free repeats; labels: where the event comes from, for a reader; streams: as the replay wants them.
    """

    signed_bytes: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Index at which each of `SECTIONS` begins."""

    def __len__(self) -> int:
        return len(self.signed_bytes)

    def add(self, signed_bytes: int, block: int, label: str, stream: int = 0) -> None:
        """Append one event."""
        self.signed_bytes.append(signed_bytes)
        self.blocks.append(block)
        self.labels.append(label)
        self.streams.append(stream)

    def cut(self, length: int) -> None:
        """Drop the events from an index on."""
        for column in (self.signed_bytes, self.blocks, self.labels, self.streams):
            del column[length:]

    def sections(self) -> list[Section]:
        """The stretches between the starts."""
        edges = [*self.starts, len(self)]
        named = zip(SECTIONS, pairwise(edges), strict=False)
        return [Section(name=name, start=start, stop=stop) for name, (start, stop) in named]

    def live_bytes(self) -> list[int]:
        """Requested bytes live after each event."""
        return list(accumulate(self.signed_bytes))

    def peak_bytes(self, section: Section | None = None) -> int:
        """Most bytes live after an event of the section, or of all."""
        live: Sequence[int] = self.live_bytes()
        return max(live if section is None else live[section.start : section.stop], default=0)

    def replay_events(self) -> ReplayEvents:
        """The events as the allocator replay takes them."""
        sizes = np.array(self.signed_bytes, dtype=np.int64)
        return ReplayEvents(
            kinds=np.where(sizes > 0, ALLOC, FREE).astype(np.int8),
            blocks=np.array(self.blocks, dtype=np.int64),
            sizes=np.maximum(sizes, 0),
            streams=np.array(self.streams, dtype=np.int64),
        )
