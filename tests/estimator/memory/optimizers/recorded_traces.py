"""Cases of benchmarks/gpu_recordings: what the caching allocator of an H100 did, phase by phase."""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["RecordedEvent", "recorded_cases", "recorded_phases"]

FOLDER = Path(__file__).parents[4] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24"


class RecordedEvent(NamedTuple):
    """An allocation ("alloc") or free of `nbytes`; `block` numbers the case's allocations."""

    kind: str
    block: int
    nbytes: int


@cache
def recorded_cases(part: str) -> tuple[dict[str, Any], ...]:
    """The cases of one part, in the order recorded."""
    with gzip.open(FOLDER / f"{part}.jsonl.gz", "rt") as lines:
        return tuple(case for case in map(json.loads, lines) if "spec" in case)


def recorded_phases(case: dict[str, Any]) -> Iterator[tuple[str, int, list[RecordedEvent]]]:
    """Name, step and events of each phase; segments are left out, a free is matched to its block by address."""
    trace = case["trace"]
    columns = zip(trace["actions"], trace["sizes"], trace["addresses"], strict=True)
    at_address: dict[int, int] = {}
    events: list[RecordedEvent] = []
    num_blocks = 0
    for action, nbytes, address in columns:
        if action == "a":
            at_address[address] = num_blocks
            events.append(RecordedEvent("alloc", num_blocks, nbytes))
            num_blocks += 1
        elif action == "f":
            events.append(RecordedEvent("free", at_address.pop(address, -1), nbytes))
    starts = [phase["events_before"] for phase in case["phases"]] + [len(events)]
    for phase, start, end in zip(case["phases"], starts, starts[1:], strict=False):
        yield phase["phase"], phase["step"], events[start:end]
