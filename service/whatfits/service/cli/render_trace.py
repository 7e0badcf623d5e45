"""A trace in a terminal: the libraries, what was found, how exact it is, how to use it, and what its peak is made of."""

import json

from rich.console import RenderableType
from rich.text import Text

from whatfits.estimator.profile import DEFAULT_STACK
from whatfits.estimator.units import format_bytes
from whatfits.service.cli.output import build_table, print_rendered
from whatfits.service.cli.render_explanation import build_live_table, build_step_table
from whatfits.service.cli.trace_answer import TraceAnswer


def render_trace(answer: TraceAnswer) -> None:
    """Print the whole answer."""
    table = build_table("", "")
    table.show_header = False
    for name, text in _lines(answer):
        table.add_row(name, text)
    title: RenderableType = Text(f"{answer.model}: {answer.profile}", style="bold")
    explained = build_live_table(answer.explanation), "", build_step_table(answer.explanation)
    print_rendered(title, table, "", *explained)


def _lines(answer: TraceAnswer) -> list[tuple[str, str]]:
    dims = answer.dims
    libraries = ", ".join(f"{name} {version}" for name, version in answer.versions.items())
    peak = f"{answer.peak_requested_bytes:,} bytes ({format_bytes(answer.peak_requested_bytes)})"
    lines = [
        ("libraries", f"{libraries}, Python {answer.python}"),
        ("attention kernel", answer.kernel),
        (
            "events",
            f"{answer.num_events:,} at micro-batch {dims['b']} x {dims['s']} tokens, {dims['L']} layers",
        ),
        ("peak", f"{peak} live beside {format_bytes(answer.weight_bytes)} of weights and buffers"),
        ("", "one micro-batch, its gradients kept, no optimizer"),
        ("exactness", _word_exactness(answer)),
    ]
    if answer.saved_to is not None:
        lines.append(("kept in", answer.saved_to))
        if answer.stack != DEFAULT_STACK:
            lines.append(("used by", f'runs with "stack": {json.dumps(answer.stack)}'))
    return lines


def _word_exactness(answer: TraceAnswer) -> str:
    points = answer.held_out
    if answer.fallback is None:
        events = sum(point.num_events for point in points)
        return f"0 bytes and 0 of {events:,} events differ from direct traces at {len(points)} unseen points"
    differing = sum(point.num_different_events > 0 or point.peak_difference_bytes != 0 for point in points)
    found = f"; the compiled class differs at {differing} of {len(points)} points" if points else ""
    return f"a direct trace of these sizes alone{found}"
