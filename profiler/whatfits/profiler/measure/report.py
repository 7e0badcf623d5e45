"""One case's measured result and prediction, held together; and the table a person reads."""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whatfits.estimator.units import MIB
from whatfits.profiler.measure.allocator_history import AllocatorTrace
from whatfits.profiler.measure.compare import compare_events, summarise
from whatfits.profiler.measure.events import EventList
from whatfits.profiler.measure.prediction import Peaks, Prediction
from whatfits.profiler.measure.replay_check import check_replay

__all__ = ["case_report", "event_lines", "folder_name", "format_difference", "format_table", "write_report"]

_MOST_FILE_BYTES = 15 * MIB


def case_report(
    name: str, result: dict[str, Any], prediction: Prediction | None, problem: str | None
) -> dict[str, Any]:
    """Everything about one case but its event lists.

    Args:
        name: of the case.
        result: what the measuring process wrote.
        prediction: None where there is none.
        problem: why there is no prediction.
    """
    report: dict[str, Any] = {"name": name, **{k: v for k, v in result.items() if k not in _BULK}}
    report["prediction_error"] = problem
    if prediction is not None:
        report["predicted_peaks"] = asdict(prediction.peaks)
    if result.get("events") is None:
        return report
    measured = EventList(**result["events"])
    report["measured_peaks"] = asdict(_measured_peaks(measured, result["phases"]))
    if prediction is not None:
        sections = compare_events(prediction.events, measured)
        report["comparison"] = summarise(sections)
        report["sections"] = [section.to_json() for section in sections]
    if result.get("trace"):
        try:
            report["replay_of_recording"] = check_replay(AllocatorTrace.from_json(result["trace"]), measured)
        except Exception as error:  # noqa: BLE001  (the recording is kept whatever the check makes of it)
            report["replay_of_recording"] = {"error": f"{type(error).__name__}: {error}"}
    return report


_BULK = ("events", "trace", "environment")


def _measured_peaks(events: EventList, phases: Sequence[dict[str, Any]]) -> Peaks:
    """From the allocator's counters; on a CPU, which has none, from the events."""

    def highest(counter: str) -> int | None:
        return max((p["counters"][counter] for p in phases if counter in p["counters"]), default=None)

    allocated = highest("peak_allocated_bytes")
    return Peaks(
        requested_bytes=events.peak_bytes() if allocated is None else highest("peak_requested_bytes"),
        allocated_bytes=allocated,
        reserved_bytes=highest("peak_reserved_bytes"),
    )


def event_lines(name: str, result: dict[str, Any], prediction: Prediction | None) -> str:
    """One JSON line with a case's event lists: the allocator's actions, or the CPU's events, and the prediction."""
    line: dict[str, Any] = {"name": name, "recorded": result.get("trace") or result.get("events")}
    if prediction is not None:
        line["predicted"] = {
            "signed_bytes": prediction.events.signed_bytes,
            "blocks": prediction.events.blocks,
            "starts": prediction.events.starts,
        }
    return json.dumps(line, separators=(",", ":"))


def folder_name(report: dict[str, Any]) -> str:
    """`<gpu>_<date>`, in letters, digits and hyphens."""
    device = report["environment"].get("gpu") or "cpu"
    return f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}_{report['date'][:10]}"


def write_report(folder: Path, report: dict[str, Any], lines: Sequence[str]) -> None:
    """Write report.json and events.jsonl.gz; event lists that would make the file too large are left out, and named."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, size = list[bytes](), 0
    for case, line in zip(report["cases"], lines, strict=True):
        packed = gzip.compress(f"{line}\n".encode(), 9, mtime=0)  # gzip members may be joined
        case["events_kept"] = size + len(packed) <= _MOST_FILE_BYTES
        if case["events_kept"]:
            kept.append(packed)
            size += len(packed)
    (folder / "events.jsonl.gz").write_bytes(b"".join(kept))
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def format_difference(difference: dict[str, Any]) -> str:
    """One line on a program traced here beside the shipped one."""
    if difference["same"] is None:
        return str(difference["reason"])
    return (
        "the same as shipped"
        if difference["same"]
        else "differs from the shipped one; report.json says where"
    )


_COLUMNS = (
    "case",
    "events p/m",
    "same",
    "moved",
    "first differs in",
    "requested p/m MiB",
    "allocated p/m MiB",
    "reserved p/m MiB",
)


def format_table(cases: Sequence[dict[str, Any]]) -> str:
    """Predicted (p) beside measured (m), one line per case."""
    rows = [_COLUMNS, *(_row(case) for case in cases)]
    widths = [max(len(row[j]) for row in rows if len(row) == len(_COLUMNS)) for j in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) for row in rows
    )


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    if case.get("error"):
        return (case["name"], f"{case['error']['type']}: {case['error']['message'].splitlines()[0][:120]}")
    if "comparison" not in case:
        return (case["name"], f"not predicted: {case['prediction_error']}")
    compared = case["comparison"]
    peaks = [
        f"{_mib(case['predicted_peaks'][key])}/{_mib(case['measured_peaks'][key])}"
        for key in ("requested_bytes", "allocated_bytes", "reserved_bytes")
    ]
    return (
        case["name"],
        f"{compared['num_predicted']}/{compared['num_measured']}",
        f"{100 * compared['share_same']:.3f}%",
        str(compared["num_moved"]),
        compared["first_different_section"] or "-",
        *peaks,
    )


def _mib(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / MIB:.3f}"
