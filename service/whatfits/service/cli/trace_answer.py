"""What `whatfits trace` answers."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from whatfits.estimator.memory.explain import explain_micro_batch
from whatfits.estimator.specs import Explanation

if TYPE_CHECKING:
    from whatfits.profiler.trace.produce import Produced

__all__ = ["HeldOutPoint", "TraceAnswer", "describe_trace"]


class HeldOutPoint(BaseModel):
    """A point no size was fitted at, and what differs from a direct trace there."""

    model_config = ConfigDict(frozen=True)

    dims: dict[str, int]
    num_events: int
    num_different_events: int
    peak_difference_bytes: int


class TraceAnswer(BaseModel):
    """What was traced, with which libraries, how exact it is and where it is kept."""

    model_config = ConfigDict(frozen=True)

    model: str
    profile: str
    """Name of the structure class."""
    basis: Literal["compiled", "direct_trace"]
    """Whether every size of the class is answered, or the traced one alone."""
    fallback: str | None
    """Why it is a direct trace."""
    stack: dict[str, str]
    """As a run's `stack` names it."""
    versions: dict[str, str]
    python: str
    kernel: str
    """The attention kernel the trace ended in."""
    dims: dict[str, int]
    num_events: int
    peak_requested_bytes: int
    """Most bytes live in one micro-batch beside weights and buffers, gradients kept, no optimizer."""
    peak_rounded_bytes: int
    """The same with every block rounded up to 512 bytes, as the device's allocator does."""
    weight_bytes: int
    """Parameters and buffers."""
    held_out: tuple[HeldOutPoint, ...]
    saved_to: str | None
    explanation: Explanation
    """What is live at the rounded peak, and how memory moves over the micro-batch."""


def describe_trace(
    model: str,
    produced: "Produced",
    dims: Mapping[str, int],
    *,
    versions: Mapping[str, str],
    python: str,
    folder: Path | None,
) -> TraceAnswer:
    """Answer for what was produced; `folder` is where it was kept, if it was."""
    trace, program = produced.trace, produced.program
    weights = sum(prod(shape) * nbytes for _, shape, nbytes, _, _ in trace.parameters)
    return TraceAnswer(
        model=model,
        profile=program.key.slug,
        basis="compiled" if produced.fallback is None else "direct_trace",
        fallback=produced.fallback,
        stack=program.stack,
        versions=dict(versions),
        python=python,
        kernel=program.kernel,
        dims=dict(dims),
        num_events=sum(len(tokens) for tokens in trace.parts.values()),
        peak_requested_bytes=max(trace.live_bytes()),
        peak_rounded_bytes=max(trace.live_bytes(rounded_to=512)),
        weight_bytes=weights + sum(nbytes for _, nbytes in trace.buffers),
        held_out=tuple(
            HeldOutPoint(
                dims=point.dims,
                num_events=point.comparison.num_events,
                num_different_events=point.comparison.num_different_events,
                peak_difference_bytes=point.comparison.table_peak_bytes - point.comparison.traced_peak_bytes,
            )
            for point in produced.held_out
        ),
        saved_to=None if folder is None else str(folder),
        explanation=explain_micro_batch(program, dict(dims)),
    )
