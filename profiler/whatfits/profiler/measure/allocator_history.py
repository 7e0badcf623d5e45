"""The history of torch's CUDA caching allocator. Every private name of torch.cuda this package needs is used here.

Checked against torch/cuda/memory.py and torch/cuda/_memory_viz.py of torch 2.11.0 and 2.13.0: the signatures of
`_record_memory_history` (enabled, context, stacks, max_entries, device, clear_history, compile_context,
global_record_annotations, skip_actions) and `_snapshot` are equal, apart from `augment_with_fx_traces`, which is left
alone. An entry holds action, addr, size, stream, and since 2.13 pool_id; frames are absent with context=None.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from whatfits.profiler.measure.events import EventList

__all__ = ["AllocatorTrace", "reduce_entries", "start_recording", "stop_recording"]

ACTIONS: Mapping[str, str] = {
    "alloc": "a",
    "free_completed": "f",
    "segment_alloc": "S",
    "segment_free": "F",
    "segment_map": "M",
    "segment_unmap": "U",
    "oom": "O",
}
"""Letter of each action kept. `free_requested` precedes each `free_completed` and changes nothing by itself."""


def start_recording() -> None:
    """Record every allocation from here on, without stack traces."""
    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python")


def stop_recording(device: int = 0) -> "AllocatorTrace":
    """End the recording and return what it holds of one device."""
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    segments = [s for s in snapshot["segments"] if s.get("device", 0) == device]
    return reduce_entries(snapshot["device_traces"][device], segments)


@dataclass(slots=True, kw_only=True)
class AllocatorTrace:
    """What the allocator did, one element of each column per action.

    actions: letters of `ACTIONS`; sizes: requested bytes of an allocation, bytes of a segment; addresses: relative to
    the lowest one; streams: numbered in the order of their handles, as the allocator sorts them.
    """

    actions: str = ""
    sizes: list[int] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    final_segment_bytes: list[int] = field(default_factory=list)

    def events(self) -> EventList:
        """Allocations and frees with their blocks numbered. A block older than the recording gets a negative number."""
        events, block_at, num_allocated, num_older = EventList(), {}, 0, 0
        for action, size, address, stream in zip(
            self.actions, self.sizes, self.addresses, self.streams, strict=True
        ):
            if action == "a":
                block_at[address] = num_allocated
                events.add(size, num_allocated, "", stream)
                num_allocated += 1
            elif action == "f":
                if address not in block_at:
                    num_older += 1
                events.add(-size, block_at.pop(address, -num_older), "", stream)
        return events

    def to_json(self) -> dict[str, Any]:
        """Columns as plain data."""
        return {
            "actions": self.actions,
            "sizes": self.sizes,
            "addresses": self.addresses,
            "streams": self.streams,
            "final_segment_bytes": self.final_segment_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AllocatorTrace":
        """Inverse of `to_json`."""
        return cls(**data)


def reduce_entries(
    entries: Iterable[Mapping[str, Any]], segments: Iterable[Mapping[str, Any]] = ()
) -> AllocatorTrace:
    """Reduce the entries of one device's trace to (action, size, address, stream)."""
    kept = [entry for entry in entries if entry["action"] in ACTIONS]
    lowest = min((entry["addr"] for entry in kept if "addr" in entry), default=0)
    ranks = {handle: rank for rank, handle in enumerate(sorted({entry["stream"] for entry in kept}))}
    return AllocatorTrace(
        actions="".join(ACTIONS[entry["action"]] for entry in kept),
        sizes=[entry["size"] for entry in kept],
        addresses=[entry["addr"] - lowest if "addr" in entry else -1 for entry in kept],
        streams=[ranks[entry["stream"]] for entry in kept],
        final_segment_bytes=[segment["total_size"] for segment in segments],
    )
