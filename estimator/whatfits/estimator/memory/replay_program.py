"""Events in the form that the replay's loop reads: plain lists, with each allocation's block bytes and pool known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.replay_allocator import CachingAllocator, CapacityExceededError, InitialSegment
from whatfits.estimator.memory.replay_events import ALLOC, MalformedEventsError, ReplayEvents
from whatfits.estimator.memory.replay_rules import block_bytes_array, pool_number_array

__all__ = ["ReplayProgram"]


@dataclass(frozen=True, slots=True)
class ReplayProgram:
    """Events as plain lists; a free has pool -1, and requests of 0 bytes are left out.

    Attributes:
        blocks, sizes, pools: of each position.
        event_index: index of the event at each position.
        requested: requested bytes of an allocation at each position; 0 at a free.
        release_positions: positions before which the unused segments are released.
    """

    blocks: list[int]
    sizes: list[int]
    pools: list[int]
    event_index: NDArray[np.int64]
    requested: NDArray[np.int64]
    release_positions: tuple[int, ...]

    @classmethod
    def of(cls, events: ReplayEvents) -> Self:
        """The program of some events."""
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

    def run(self, allocator: CachingAllocator, start: int = 0, stop: int | None = None) -> int | None:
        """Run the positions from `start` up to `stop`, or to the end; the one at which memory ran out, if it did.

        A release before the position `stop` is left to whoever goes on there.

        Raises:
            MalformedEventsError: a block is freed that is not allocated.
        """
        for release in self.release_positions:
            if start <= release and (stop is None or release < stop):
                failed_at = self._run_between(allocator, slice(start, release))
                if failed_at is not None:
                    return failed_at
                allocator.release_cached()
                start = release
        return self._run_between(allocator, slice(start, stop))

    def _run_between(self, allocator: CachingAllocator, part: slice) -> int | None:
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
        """Where a block is allocated."""
        position = -1
        while True:
            position = self.blocks.index(block, position + 1)
            if self.pools[position] >= 0:
                return position

    def peak_requested_bytes(self, stop: int | None, initial: Sequence[InitialSegment]) -> int:
        """Largest sum of requested bytes over the positions before `stop`."""
        held = [(block, requested) for segment in initial for block, _, _, requested in segment.blocks]
        blocks, change = np.array(self.blocks[:stop], dtype=np.int64), self.requested[:stop].copy()
        frees = np.array(self.pools[:stop]) < 0
        ids = np.concatenate([[block for block, _ in held], blocks[~frees]]).astype(np.int64)
        nbytes = np.concatenate([[requested for _, requested in held], change[~frees]]).astype(np.int64)
        order = np.argsort(ids)
        change[frees] = -nbytes[order[np.searchsorted(ids, blocks[frees], sorter=order)]]
        before = sum(requested for _, requested in held)
        return before + max(0, int(np.cumsum(change).max(initial=0)))
