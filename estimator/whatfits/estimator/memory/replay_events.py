"""What a replay replays: allocations and frees in order, as arrays."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.errors import WhatfitsError

__all__ = ["ALLOC", "FREE", "MalformedEventsError", "ReplayEvents"]

ALLOC: Final = 1
FREE: Final = 2


class MalformedEventsError(WhatfitsError):
    """The events do not describe allocations and frees of known blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayEvents:
    """Allocations and frees in order, one element of each array per event.

    Attributes:
        kinds: ALLOC (1) or FREE (2).
        blocks: block id; each id is allocated at most once.
        sizes: requested bytes of an ALLOC; ignored for a FREE. A request of 0 bytes takes no memory.
        streams: stream number, 0 or more; ignored for a FREE.
        releases: indices of the events before which the unused segments are released (`torch.cuda.empty_cache`),
            ascending.
    """

    kinds: NDArray[np.int8]
    blocks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    streams: NDArray[np.int64] | None = None
    releases: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse arrays of different lengths, unknown kinds, ids allocated twice, negative sizes and streams."""
        if list(self.releases) != sorted(self.releases) or not all(
            0 <= r <= len(self.kinds) for r in self.releases
        ):
            raise MalformedEventsError(f"releases that are not ascending event indices: {self.releases}")
        lengths = {len(self.kinds), len(self.blocks), len(self.sizes)}
        if self.streams is not None:
            lengths.add(len(self.streams))
        if len(lengths) > 1:
            raise MalformedEventsError(f"the arrays have different lengths: {sorted(lengths)}")
        is_alloc = self.kinds == ALLOC
        if not np.all(is_alloc | (self.kinds == FREE)):
            raise MalformedEventsError(
                f"kinds other than {ALLOC} and {FREE}: {np.unique(self.kinds).tolist()}"
            )
        ids, counts = np.unique(self.blocks[is_alloc], return_counts=True)
        if np.any(counts > 1):
            raise MalformedEventsError(f"block {ids[counts > 1][0]} is allocated more than once")
        if np.any(self.sizes[is_alloc] < 0):
            raise MalformedEventsError(f"negative size: {self.sizes[is_alloc].min()}")
        if self.streams is not None and np.any(self.streams < 0):
            raise MalformedEventsError(f"negative stream: {self.streams.min()}")
