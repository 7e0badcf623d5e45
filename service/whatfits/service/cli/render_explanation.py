"""An explanation in a terminal: what is live at the peak, by module and operation, and memory over the step."""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from whatfits.estimator.specs import Explanation, LiveGroup, TimelinePoint
from whatfits.estimator.units import format_bytes
from whatfits.service.cli.output import build_table

__all__ = ["build_live_table", "build_step_table"]

_MOST_GROUPS = 20
_WIDTH = 48
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " .:-=+*#%"


def build_live_table(explanation: Explanation) -> Table:
    """Build the table of the largest groups at the peak, and of the rest together; its lines sum to its total."""
    title = f"Live at the peak ({explanation.peak_phase}), by operation and module"
    table = build_table(
        "", "made in", "bytes", "size", "share", right=("bytes", "size", "share"), title=title
    )
    total = sum(group.bytes for group in explanation.live)
    shown, rest = explanation.live[:_MOST_GROUPS], explanation.live[_MOST_GROUPS:]
    rows = [(_word_group(group), group.phase or "-", group.bytes) for group in shown]
    if rest:
        rows.append((f"{len(rest)} smaller groups", "", sum(group.bytes for group in rest)))
    for name, phase, nbytes in rows:
        table.add_row(name, phase, f"{nbytes:,}", format_bytes(nbytes), f"{nbytes / total:.1%}")
    table.add_row("total", "", f"{total:,}", format_bytes(total), "", style="bold")
    return table


def build_step_table(explanation: Explanation) -> Table:
    """Build the table of the step's parts, each with its peak and memory drawn from 0 to the highest peak."""
    title = (
        f"Over the {explanation.step.replace('_', '-')}{'' if explanation.step == 'micro_batch' else ' step'}"
    )
    table = build_table("", "events", "peak", "memory", right=("events", "peak"), title=title)
    for phase, num_events, nbytes, points in _parts(explanation):
        drawn = _draw([point.allocated_bytes for point in points], explanation.peak_allocated_bytes)
        table.add_row(phase, f"{num_events:,}", format_bytes(nbytes), drawn)
    return table


def _word_group(group: LiveGroup) -> str:
    return f"{group.count:,} x {group.op}" + (f" of {group.module}" if group.module else "")


def _parts(explanation: Explanation) -> Iterator[tuple[str, int, int, list[TimelinePoint]]]:
    """Phase, number of events, peak and points of each part."""
    parts, points = explanation.parts, explanation.timeline
    ends = [*(part.first_event for part in parts[1:]), points[-1].event + 1]
    for part, end in zip(parts, ends, strict=True):
        inside = [point for point in points if part.first_event <= point.event < end]
        yield part.phase, end - part.first_event, part.peak_allocated_bytes, inside


def _draw(heights: Sequence[int], highest: int) -> str:
    """A line of blocks, each as high as the most of the points it stands for."""
    can_draw = (sys.stdout.encoding or "").lower().startswith("utf")
    blocks = _BLOCKS if can_draw else _ASCII_BLOCKS
    columns = np.array_split(np.array(heights), min(_WIDTH, len(heights)))
    return "".join(blocks[-(-int(column.max()) * (len(blocks) - 1) // highest)] for column in columns)
