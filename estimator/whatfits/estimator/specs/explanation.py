"""What is live at the peak of a step, by module and operation, and how memory moves over that step."""

from enum import StrEnum

from pydantic import Field

from whatfits.estimator.specs.base import Spec
from whatfits.estimator.specs.enums import PeakPhase

__all__ = ["ExplainedStep", "Explanation", "LiveGroup", "StepPart", "TimelinePoint"]


class ExplainedStep(StrEnum):
    """The step an explanation is of."""

    FIRST = "first"
    """The one that creates the optimizer's states."""
    STEADY = "steady"
    """An ordinary one."""
    REFRESH = "refresh"
    """One that refreshes projections, where the method has any."""
    MICRO_BATCH = "micro_batch"
    """A traced forward and backward pass alone, beside the weights, without an optimizer."""


class LiveGroup(Spec):
    """Tensors of one origin that are live at the peak."""

    count: int
    """Number of tensors."""
    op: str
    """What they are, such as `silu output`, `weight`, `gradient`, or the name of an optimizer's state."""
    module: str
    """Where they come from, with `*` for the layer number; empty where no module made them."""
    phase: PeakPhase | None
    """Part of a step in which they were made; null for what was there before the first step."""
    category: str
    """Term of the breakdown they belong to."""
    bytes: int
    """Requested bytes of all of them."""
    largest_bytes: int
    """Requested bytes of the largest."""


class StepPart(Spec):
    """A stretch of a step within one phase."""

    phase: PeakPhase
    """The phase."""
    first_event: int
    """Event of the step with which it begins."""
    peak_allocated_bytes: int
    """Most bytes allocated in it."""


class TimelinePoint(Spec):
    """Memory after one event of the step."""

    event: int
    """Number of the allocation or free, from 0 at the step's begin."""
    phase: PeakPhase
    """Part of the step it lies in."""
    allocated_bytes: int
    """Bytes allocated after it."""
    module: str
    """Module of the latest allocation, with `*` for the layer number."""


class Explanation(Spec):
    """The live set at the allocated peak, and the step in which that lies.

    Bytes allocated are blocks in use, as the replayed allocator hands them out; for a micro-batch, which is not replayed,
    tensors rounded up to 512 bytes.
    """

    step: ExplainedStep
    """A step with that peak: an ordinary one, unless only the first or a refresh goes so high."""
    peak_phase: PeakPhase
    """The part of it with the peak."""
    peak_event: int
    """The event of it with the peak."""
    peak_allocated_bytes: int
    """Bytes allocated at the peak."""
    live: tuple[LiveGroup, ...]
    """Everything live at the peak, most bytes first; per category it sums to the breakdown's term."""
    parts: tuple[StepPart, ...]
    """The parts of the step in order; with accumulation forward to backward comes more than once."""
    timeline: tuple[TimelinePoint, ...] = Field(max_length=400)
    """The step, thinned to its lowest and highest points; the peaks of all parts are among them."""
