"""Recorded training loops of the `tiny` model: what the allocator did in each phase of a step."""

from functools import cache
from pathlib import Path
from typing import Any

from whatfits.profiler.measure.recordings import RecordedCase, read_recording

__all__ = ["between", "recorded"]

STEPS = Path(__file__).parents[3] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24/steps.jsonl.gz"
PLAIN = {"model": "tiny", "b": 2, "s": 256, "optimizer": "adamw_foreach"}


@cache
def _cases() -> tuple[RecordedCase, ...]:
    return tuple(case for case in read_recording(STEPS) if PLAIN.items() <= case.spec.items())


def recorded(**spec: Any) -> RecordedCase:
    """The one case of exactly this spec beside the plain one's fields."""
    (found,) = (case for case in _cases() if case.spec == {**PLAIN, **spec})
    return found


def between(case: RecordedCase, step: int, *phases: str) -> list[tuple[str, int]]:
    """Kind and size of every event in some phases of a step."""
    assert case.trace is not None
    events = [
        ("alloc" if action == "a" else "free", nbytes)
        for action, nbytes in zip(case.trace.actions, case.trace.sizes, strict=True)
        if action in "af"
    ]
    starts = [phase["events_before"] for phase in case.phases] + [len(events)]
    return [
        event
        for number, phase in enumerate(case.phases)
        if phase["step"] == step and phase["phase"] in phases
        for event in events[starts[number] : starts[number + 1]]
    ]
