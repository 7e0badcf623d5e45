"""Plotly figures as plain JSON, built purely; Plotly itself runs in the browser.

Lengths are bytes throughout, so that a bar's segments sum to the device total exactly; only texts are GiB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whatfits.estimator.units import GIB, format_bytes

__all__ = [
    "SEGMENTS",
    "MemoryBar",
    "Segment",
    "build_memory_figure",
    "build_segment_bytes",
    "segments_in_use",
]

# A Plotly figure is JSON without a fixed shape.
Figure = dict[str, Any]

_BAR_PIXELS = 34
_FRAME_PIXELS = 80
_TICK_STEPS_GIB = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_MOST_TICKS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One owner of device memory: its key in the API's answer, its name, colour and pattern."""

    key: str
    label: str
    colour: str
    pattern: str = ""


SEGMENTS = (
    Segment(key="weights", label="Weights", colour="#4e79a7"),
    Segment(key="master_weights", label="Master weights", colour="#a0cbe8", pattern="/"),
    Segment(key="gradients", label="Gradients", colour="#f28e2b"),
    Segment(key="optimizer_states", label="Optimizer states", colour="#e15759"),
    Segment(key="activations", label="Activations", colour="#59a14f"),
    Segment(key="logits_and_loss", label="Logits and loss", colour="#a6d88f", pattern="/"),
    Segment(key="temporaries", label="Temporaries", colour="#edc948"),
    Segment(key="communication_buffers", label="Communication", colour="#b07aa1"),
    Segment(key="workspace", label="Workspace", colour="#9c755f"),
    Segment(key="rounding_and_remainders", label="Rounding", colour="#d7b5a6"),
    Segment(key="allocator_overhead", label="Allocator overhead", colour="#c9d1d8", pattern="/"),
    Segment(key="context", label="CUDA context", colour="#8796a5"),
    Segment(key="communicators", label="Communicators", colour="#76b7b2"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBar:
    """One candidate's device memory: its segments, and the total with its 90% interval."""

    label: str
    segments: Mapping[str, int]
    low: float
    median: float
    high: float


def build_segment_bytes(breakdown: Mapping[str, int], device_breakdown: Mapping[str, int]) -> dict[str, int]:
    """Bytes by segment: what is live at the peak, then what the allocator, the context and NCCL hold beyond it.

    `allocated` of the device breakdown is what the terms of `breakdown` sum to, so it is left out.
    """
    beyond = {key: nbytes for key, nbytes in device_breakdown.items() if key != "allocated"}
    return {**breakdown, **beyond}


def segments_in_use(bars: Sequence[MemoryBar]) -> tuple[Segment, ...]:
    """The segments that some bar has, in drawing order; one the page does not know is drawn grey."""
    known = {segment.key for segment in SEGMENTS}
    unknown = dict.fromkeys(key for bar in bars for key in bar.segments if key not in known)
    strangers = (
        Segment(key=key, label=key.replace("_", " ").capitalize(), colour="#999999") for key in unknown
    )
    return tuple(
        segment
        for segment in (*SEGMENTS, *strangers)
        if any(bar.segments.get(segment.key, 0) for bar in bars)
    )


def build_memory_figure(bars: Sequence[MemoryBar], *, usable_bytes: int) -> Figure:
    """A stacked horizontal bar per candidate against the line of usable memory, with the 90% interval."""
    longest = max(usable_bytes, *(bar.high for bar in bars))
    traces = [_segment_trace(segment, bars) for segment in segments_in_use(bars)]
    return {
        "data": [*traces, _interval_trace(bars)],
        "layout": {
            "barmode": "stack",
            "bargap": 0.28,
            "height": _FRAME_PIXELS + _BAR_PIXELS * len(bars),
            "margin": {"l": 8, "r": 16, "t": 34, "b": 32},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "hovermode": "closest",
            "dragmode": False,
            "showlegend": False,
            "xaxis": _memory_axis(longest * 1.04),
            "yaxis": {"autorange": "reversed", "automargin": True, "fixedrange": True, "ticks": ""},
            "shapes": [_limit_line(usable_bytes)],
            "annotations": [_limit_label(usable_bytes)],
        },
    }


def _segment_trace(segment: Segment, bars: Sequence[MemoryBar]) -> Figure:
    sizes = [bar.segments.get(segment.key, 0) for bar in bars]
    return {
        "type": "bar",
        "orientation": "h",
        "name": segment.label,
        "x": sizes,
        "y": [bar.label for bar in bars],
        "customdata": [format_bytes(size) for size in sizes],
        "hovertemplate": "%{y}<br>" + segment.label + ": %{customdata}<extra></extra>",
        "marker": {
            "color": segment.colour,
            "pattern": {
                "shape": segment.pattern,
                "fillmode": "overlay",
                "size": 6,
                "solidity": 0.2,
                "fgcolor": "#ffffff",
            },
            "line": {"width": 0},
        },
    }


def _interval_trace(bars: Sequence[MemoryBar]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "Total, 90% interval",
        "x": [bar.median for bar in bars],
        "y": [bar.label for bar in bars],
        "customdata": [
            f"{format_bytes(bar.median)} ({format_bytes(bar.low)} to {format_bytes(bar.high)})"
            for bar in bars
        ],
        "hovertemplate": "%{y}<br>Total: %{customdata}<extra></extra>",
        "marker": {"symbol": "line-ns", "size": 12, "color": "#17222d", "line": {"width": 2}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [bar.high - bar.median for bar in bars],
            "arrayminus": [bar.median - bar.low for bar in bars],
            "thickness": 1.5,
            "width": 5,
        },
    }


def _memory_axis(end: float) -> Figure:
    step = next((step for step in _TICK_STEPS_GIB if end / (step * GIB) <= _MOST_TICKS), _TICK_STEPS_GIB[-1])
    ticks = list(range(0, int(end) + 1, step * GIB))
    return {
        "range": [0, end],
        "fixedrange": True,
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [format_bytes(tick).replace(".00", "") for tick in ticks],
    }


def _limit_line(usable_bytes: int) -> Figure:
    return {
        "type": "line",
        "x0": usable_bytes,
        "x1": usable_bytes,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#b3261e", "width": 2, "dash": "dash"},
    }


def _limit_label(usable_bytes: int) -> Figure:
    return {
        "x": usable_bytes,
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
        "xanchor": "right",
        "showarrow": False,
        "text": f"usable {format_bytes(usable_bytes)}",
        "font": {"color": "#b3261e"},
    }
