"""What is live at the peak, in the words of the model's code, and how memory moves over the step.

Everything is read off a timeline and the bytes allocated after each of its events; nothing is estimated anew.
"""

import re

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.replay import allocated_curve
from whatfits.estimator.memory.replay_events import ALLOC
from whatfits.estimator.memory.timeline import (
    CATEGORIES,
    STEP_PHASES,
    Origin,
    Timeline,
    micro_batch_timeline,
)
from whatfits.estimator.profile import EventProgram
from whatfits.estimator.specs import (
    AllocatorMode,
    ExplainedStep,
    Explanation,
    LiveGroup,
    PeakPhase,
    StepPart,
    TimelinePoint,
)
from whatfits.estimator.units import ALLOCATION_GRANULARITY

__all__ = ["explain_micro_batch", "explain_step"]

IntArray = NDArray[np.int64]

_MOST_POINTS = 400
_PHASES = tuple(PeakPhase)
_INPUT = Origin("empty", "", traced=True)
"""Tokens and labels, which the tracer makes."""
_LAST_NUMBER = re.compile(r"(.*\.)\d+(?=\.|$)")
_NAMES = {
    "mm": "matmul",
    "bmm": "matmul",
    "addmm": "matmul",
    "baddbmm": "matmul",
    "_to_copy": "cast",
    "constant_pad_nd": "pad",
}
"""Operations that people call otherwise than PyTorch does; the rest only lose underscores and affixes."""
_AFFIXES = re.compile(r"^_*(native|scaled_dot_product)_|_data$|_forward$")


def explain_step(timeline: Timeline, mode: AllocatorMode) -> Explanation:
    """The step of a run in which the replayed allocator reaches its peak: an ordinary one, if any does."""
    curve = allocated_curve(timeline.events, mode=mode)
    return _explain(timeline, curve, tuple(map(str, STEP_PHASES)), _ordinary_peak(timeline, curve))


def explain_micro_batch(program: EventProgram, symbols: dict[str, int]) -> Explanation:
    """One micro-batch alone: what forward and backward make beside the weights, gradients kept."""
    timeline = micro_batch_timeline(program, symbols)
    events = timeline.events
    is_alloc = events.kinds == ALLOC
    nbytes = np.zeros(int(events.blocks.max()) + 1, dtype=np.int64)
    nbytes[events.blocks[is_alloc]] = -(-events.sizes[is_alloc] // ALLOCATION_GRANULARITY)
    curve = np.cumsum(np.where(is_alloc, 1, -1) * nbytes[events.blocks]) * ALLOCATION_GRANULARITY
    return _explain(timeline, curve, (ExplainedStep.MICRO_BATCH,), int(curve.argmax()))


def _ordinary_peak(timeline: Timeline, curve: IntArray) -> int:
    """The event of the peak, in a step after the first where the same is live at the same height there."""
    first = int(curve.argmax())
    live = timeline.live_by_category(first)
    for start in timeline.step_starts[1:]:
        stop = min((x for x in timeline.step_starts if x > start), default=len(curve))
        later = start + int(curve[start:stop].argmax())
        if curve[later] == curve[first] and timeline.live_by_category(later) == live:
            return later
    return first


def _explain(timeline: Timeline, curve: IntArray, steps: tuple[str, ...], peak: int) -> Explanation:
    number = int(np.searchsorted(timeline.step_starts, peak, side="right")) - 1
    start, stop = (*timeline.step_starts, len(curve))[number : number + 2]
    step = slice(start, stop)
    bounds = _part_bounds(timeline.phase[step])
    part_peaks = [
        begin + int(curve[step][begin:end].argmax())
        for begin, end in zip(bounds, (*bounds[1:], stop - start), strict=True)
    ]
    marked = sorted({*bounds, *part_peaks})[: _MOST_POINTS // 2]
    shown = _thin(curve[step], {0, peak - start, stop - start - 1, *marked})
    return Explanation(
        step=ExplainedStep(steps[number]),
        peak_phase=_PHASES[timeline.phase[peak]],
        peak_event=peak - start,
        peak_allocated_bytes=int(curve[peak]),
        live=_live_groups(timeline, peak),
        parts=tuple(
            StepPart(
                phase=_PHASES[timeline.phase[start + begin]],
                first_event=begin,
                peak_allocated_bytes=int(curve[start + highest]),
            )
            for begin, highest in zip(bounds, part_peaks, strict=True)
        ),
        timeline=tuple(
            TimelinePoint(
                event=event,
                phase=_PHASES[timeline.phase[start + event]],
                allocated_bytes=int(curve[start + event]),
                module=_general_name(timeline.origins[timeline.origin[start + event]].module),
            )
            for event in shown
        ),
    )


def _part_bounds(phases: IntArray) -> list[int]:
    """Events at which another phase begins."""
    bounds: list[int] = np.flatnonzero(np.diff(phases, prepend=-1)).tolist()
    return bounds


def _thin(curve: IntArray, required: set[int]) -> list[int]:
    """Required events, and the lowest and highest of each of as many equal stretches as there is room for."""
    stretches = np.array_split(np.arange(len(curve)), max(1, (_MOST_POINTS - len(required)) // 2))
    found = set(required)
    for events in stretches:
        if len(events):
            values = curve[events]
            found |= {int(events[values.argmin()]), int(events[values.argmax()])}
    return sorted(found)


def _live_groups(timeline: Timeline, event: int) -> tuple[LiveGroup, ...]:
    """What is live after an event, by what made it."""
    sizes: dict[tuple[str, str, PeakPhase | None, str], list[int]] = {}
    for index in timeline.live_after(event).tolist():
        category = CATEGORIES[timeline.category[index]]
        origin = timeline.origins[timeline.origin[index]]
        made_before = index < timeline.step_starts[0]
        phase = None if made_before else _PHASES[timeline.phase[index]]
        key = (_word_op(origin, category), _general_name(origin.module), phase, category)
        sizes.setdefault(key, []).append(int(timeline.events.sizes[index]))
    groups = [
        LiveGroup(
            count=len(group),
            op=op,
            module=module,
            phase=phase,
            category=category,
            bytes=sum(group),
            largest_bytes=max(group),
        )
        for (op, module, phase, category), group in sizes.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.bytes, group.op, group.module)))


def _general_name(name: str) -> str:
    """A name with `*` for its last number, which is a layer's: `h.*.attn.weight` of `h.3.attn.weight`."""
    return _LAST_NUMBER.sub(r"\1*", name, count=1)


def _word_op(origin: Origin, category: str) -> str:
    """What a tensor is, as people say it: `silu output`, `flash attention backward output`, `gradient`."""
    if not origin.traced:
        return origin.op
    if category == "gradients":
        return "gradient"
    if origin == _INPUT:
        return "input"
    name = _NAMES.get(origin.op, _AFFIXES.sub("", origin.op))
    return f"{name.strip('_').replace('_', ' ')} output"
