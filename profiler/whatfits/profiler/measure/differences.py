"""What a campaign showed: each point beside its estimate, and for some the device's events beside the program's."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.catalog.depth import run_at_depth
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.specs.measurement import (
    MeasureDevice,
    Measurement,
    MeasurementOutcome,
    MeasureRequest,
)
from whatfits.estimator.units import MIB, format_seconds
from whatfits.profiler.measure.allocator_history import AllocatorTrace
from whatfits.profiler.measure.compare import compare_events, summarise
from whatfits.profiler.measure.events import EventList
from whatfits.profiler.measure.optimizers import measured_recipe
from whatfits.profiler.measure.prediction import predict, recipe_key
from whatfits.profiler.measure.programs import compile_here, trace_here
from whatfits.profiler.measure.replay_check import check_replay

__all__ = ["LIMITS", "compare_snapshot", "difference", "format_table", "summary"]

_KINDS = ("requested", "allocated", "reserved")
LIMITS = {"allocated": 0.005, "reserved": 0.03}
"""Shares of the estimate above which a difference is flagged."""


def difference(measurement: Measurement) -> dict[str, float | None]:
    """Measured less expected as a share of expected, per kind of bytes; None where one of them is not known.

    On a CPU, whose kernels are not those of the GPU that is estimated, expected is the trace with its own kernels.
    """
    result, estimate = measurement.result, measurement.estimate
    if result is None or result.outcome is not MeasurementOutcome.COMPLETED:
        return dict.fromkeys(_KINDS)
    if measurement.request.device is MeasureDevice.CPU:
        share = _share(result.peak_requested_bytes, result.traced_peak_requested_bytes)
        return {**dict.fromkeys(_KINDS), "requested": share}
    memory = None if estimate is None else estimate.memory
    names = {kind: f"peak_{kind}_bytes" for kind in _KINDS}
    return {
        kind: _share(getattr(result, name), None if memory is None else getattr(memory, name))
        for kind, name in names.items()
    }


def flags(measurement: Measurement) -> list[str]:
    """Kinds of bytes that differ by more than they may."""
    return [
        name
        for name, share in difference(measurement).items()
        if share is not None and abs(share) > LIMITS.get(name, LIMITS["allocated"])
    ]


def summary(named: Sequence[tuple[str, Measurement]]) -> dict[str, Any]:
    """Counts, and the largest differences by name."""
    shares = {kind: [(name, difference(each)[kind]) for name, each in named] for kind in _KINDS}
    known = {kind: [(name, s) for name, s in pairs if s is not None] for kind, pairs in shares.items()}
    return {
        "points": len(named),
        "by_status": dict(Counter(str(each.status) for _, each in named)),
        "compared": {kind: len(pairs) for kind, pairs in known.items()},
        "within": {
            kind: sum(abs(share) <= LIMITS.get(kind, LIMITS["allocated"]) for _, share in pairs)
            for kind, pairs in known.items()
        },
        "largest": {kind: sorted(pairs, key=lambda pair: -abs(pair[1]))[:5] for kind, pairs in known.items()},
        "flagged": {name: flags(each) for name, each in named if flags(each)},
        "failed": {name: each.failure.message for name, each in named if each.failure is not None},
    }


def format_table(named: Sequence[tuple[str, Measurement]]) -> str:
    """A line per point: measured MiB, differences, step time."""
    rows: list[tuple[str, ...]] = [
        ("point", "requested MiB", "diff", "allocated MiB", "diff", "reserved MiB", "diff", "step", "flagged")
    ]
    rows += [_row(name, measurement) for name, measurement in named]
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def compare_snapshot(
    request: MeasureRequest, snapshot: Path, compute_capability: str | None
) -> dict[str, Any]:
    """The recorded events of a run beside those of its program, expanded, event by event.

    Args:
        request: what was measured.
        snapshot: what the measuring process wrote.
        compute_capability: the device's; None on a CPU.
    """
    content = json.loads(gzip.decompress(snapshot.read_bytes()))
    measured = EventList(**content["events"])
    on_cpu = request.device is MeasureDevice.CPU
    run = request.spec if request.num_layers is None else run_at_depth(request.spec, request.num_layers)
    resolved = resolve_run(run)
    recipe, _ = measured_recipe(resolved.model, resolved.run, on_cpu=on_cpu, seed=request.seed)
    if on_cpu:
        program = trace_here(recipe_key(recipe), recipe, on_cpu=True)
    else:
        kernel = profile_key(resolved.model, recipe.training, resolved.gpu).first_kernel
        program = compile_here(replace(recipe_key(recipe), first_kernel=kernel), recipe).program
    prediction = predict(recipe, program, compute_capability=compute_capability)
    sections = compare_events(prediction.events, measured)
    compared: dict[str, Any] = {
        **summarise(sections),
        "sections": [section.to_json() for section in sections],
    }
    if content.get("trace"):
        compared["replay_of_recording"] = check_replay(AllocatorTrace.from_json(content["trace"]), measured)
    return compared


def _share(measured: int | None, expected: int | None) -> float | None:
    return None if measured is None or not expected else (measured - expected) / expected


def _row(name: str, measurement: Measurement) -> tuple[str, ...]:
    result = measurement.result
    if result is None:
        said = "" if measurement.failure is None else measurement.failure.message.splitlines()[0]
        return (name, f"{measurement.status}: {said}"[:100], *[""] * 7)
    shares = difference(measurement)
    cells = []
    for kind in _KINDS:
        nbytes = getattr(result, f"peak_{kind}_bytes")
        cells += ["-" if nbytes is None else f"{nbytes / MIB:.1f}", _percent(shares[kind])]
    steps = result.times.step
    step = format_seconds(median(steps)) if steps else str(result.outcome)
    return (name, *cells, step, ", ".join(flags(measurement)))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:+.3%}"
