"""Read the recordings under `benchmarks/gpu_recordings`: what a device's allocator did in each case."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatfits.profiler.measure.allocator_history import AllocatorTrace

__all__ = ["RecordedCase", "read_recording"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCase:
    """One case: its spec, its phases with counters, its history where one was kept, its notes and times.

    phases: phase, step, events_before (allocations and frees before it) and, at its end, bytes allocated, requested
    and reserved, with their peaks since its start. allocated_before: bytes that earlier cases had left.
    """

    spec: dict[str, Any]
    phases: list[dict[str, Any]]
    notes: dict[str, Any]
    times: list[dict[str, float]]
    trace: AllocatorTrace | None
    allocated_before: int
    device_used: int
    """Bytes of the device not free at the case's end, of all processes on it."""
    error: str | None

    def peak(self, counter: str) -> int:
        """The highest value of a counter over all phases, such as `peak_allocated`, in bytes."""
        return max(int(phase.get(counter, 0)) for phase in self.phases)


def read_recording(path: Path) -> Iterator[RecordedCase]:
    """The cases of one file, in the order in which they ran."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if "spec" in line:
                yield _case(line)


def _case(line: dict[str, Any]) -> RecordedCase:
    trace = line.get("trace")
    return RecordedCase(
        spec=line["spec"],
        phases=line["phases"],
        notes=line["notes"],
        times=line.get("times", []),
        trace=None if trace is None else AllocatorTrace(**trace),
        allocated_before=line["allocated_before"],
        device_used=line.get("device_used", 0),
        error=line.get("error"),
    )
