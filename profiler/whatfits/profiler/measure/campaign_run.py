"""The standing campaign, carried out or printed."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.specs.measurement import MeasureDevice, Measurement, MeasurementResult, MeasureRequest
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.profiler.measure.child_process import Answer, measure_command, run_command
from whatfits.profiler.measure.differences import compare_snapshot, format_table, summary
from whatfits.profiler.measure.local import measure_here
from whatfits.profiler.measure.schedule import Planned, ResultFile, plan_point, request_key, run_schedule
from whatfits.profiler.measure.standing import Point, standing_campaign

__all__ = ["CampaignRun"]

_CAMPAIGN = "standing"
_SHARED = "Step times were taken beside other runs on the same device."
_CPU_ROOM = 2**62
"""On a CPU points are small and nothing says what is free."""


def _in_a_child(request: MeasureRequest) -> Answer | None:
    return run_command(
        request,
        measure_command(request),
        visible_devices=None,
        on_progress=lambda _: None,
        should_stop=lambda: False,
    )


@dataclass(slots=True, kw_only=True)
class CampaignRun:
    """One campaign on one device."""

    device: MeasureDevice
    gpu: str
    """Of the catalog; on a CPU, the one that estimates are of."""
    out: Path
    """File of measurements."""
    minutes: float
    """For all points."""
    jobs: int
    """Points at a time."""
    only: str = ""
    """Text in the name of points."""
    commit: str | None = None
    """Of the checkout, where the measuring processes cannot find it out."""
    say: Callable[[str], object] = field(default=lambda sentence: print(sentence, flush=True))
    """Told what happens."""
    run: Callable[[MeasureRequest], Answer | None] = _in_a_child
    """Measures one point."""
    _events: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _comparing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))

    def print_schedule(self) -> None:
        """What would be started, with predicted time and bytes, until the minutes are used up."""
        waiting = self._waiting()
        seconds, shown = 0.0, 0
        for point in waiting:
            planned = plan_point(point)
            if seconds + planned.seconds > self.minutes * 60 * self.jobs:
                break
            seconds += planned.seconds
            shown += 1
            self.say(_schedule_line(shown, planned))
        rest = len(waiting) - shown
        self.say(
            f"{shown} points in about {format_seconds(seconds / self.jobs)}, {self.jobs} at a time, on {self.gpu}; "
            f"{rest} more when there is time; results to {self.out}"
        )

    def carry_out(self) -> None:
        """Measure, keep, compare, print."""
        run_schedule(
            [partial(plan_point, point) for point in self._waiting()],
            self._measure,
            seconds=self.minutes * 60,
            jobs=self.jobs,
            usable_bytes=self._usable_bytes(),
        )
        self._comparing.shutdown()
        measured = self._named(ResultFile(self.out).read())
        found = summary(measured)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.with_suffix(".summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if self._events:
            text = json.dumps(self._events, indent=1) + "\n"
            self.out.with_suffix(".events.json").write_text(text, encoding="utf-8")
        self.say(format_table(measured))
        self.say(
            f"{found['points']} points: {found['by_status']}; within limits {found['within']} of {found['compared']}"
        )
        self.say(f"written to {self.out}")

    def _points(self) -> list[Point]:
        return [point for point in standing_campaign(self.device, self.gpu) if self.only in point.name]

    def _waiting(self) -> list[Point]:
        done = ResultFile(self.out).done()
        return [point for point in self._points() if request_key(point.request) not in done]

    def _usable_bytes(self) -> int:
        total = find_gpu(self.gpu).total_bytes
        return _CPU_ROOM if self.device is MeasureDevice.CPU or total is None else total

    def _named(self, measured: list[Measurement]) -> list[tuple[str, Measurement]]:
        """Measurements with their points' names; of one measured twice the last."""
        last = {request_key(each.request): each for each in measured}
        named = [(point.name, request_key(point.request)) for point in self._points()]
        return [(name, last[key]) for name, key in named if key in last]

    def _measure(self, planned: Planned, seconds: float) -> Measurement:
        point = planned.point
        request = point.request.model_copy(update={"timeout_seconds": seconds})
        measurement = measure_here(request, self.run, campaign=_CAMPAIGN)
        result = measurement.result
        if result is not None:
            result = self._keep_snapshot(point, result)
            measurement = measurement.model_copy(update={"result": result})
        if self.jobs > 1:
            warning = f"{measurement.warning} {_SHARED}" if measurement.warning else _SHARED
            measurement = measurement.model_copy(update={"warning": warning})
        with self._lock:
            ResultFile(self.out).append(measurement)
        self.say(f"{point.name}: {measurement.status} in {format_seconds(_seconds(measurement))}")
        if result is not None and result.snapshot_path is not None:
            # One at a time: the tracer is not made for threads.
            self._comparing.submit(self._compare, point, result)
        return measurement

    def _keep_snapshot(self, point: Point, result: MeasurementResult) -> MeasurementResult:
        """Move the recorded events beside the results; name the commit."""
        changes: dict[str, Any] = {}
        if self.commit is not None:
            changes["environment"] = result.environment.model_copy(update={"commit": self.commit})
        if result.snapshot_path is not None:
            folder = self.out.with_suffix(".snapshots")
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / f"{point.name}.json.gz"
            shutil.move(result.snapshot_path, kept)
            changes["snapshot_path"] = str(kept.relative_to(self.out.parent))
        return result.model_copy(update=changes)

    def _compare(self, point: Point, result: MeasurementResult) -> None:
        """Hold the recorded events against the program's; what fails is said and the campaign goes on."""
        assert result.snapshot_path is not None
        path = self.out.parent / result.snapshot_path
        try:
            compared = compare_snapshot(point.request, path, result.environment.compute_capability)
        except Exception as error:  # noqa: BLE001  (the measurement is kept whatever the comparison makes of it)
            compared = {"error": f"{type(error).__name__}: {error}"}
        self._events[point.name] = compared


def _seconds(measurement: Measurement) -> float:
    assert measurement.started_at is not None
    assert measurement.finished_at is not None
    return (measurement.finished_at - measurement.started_at).total_seconds()


def _schedule_line(number: int, planned: Planned) -> str:
    estimate = planned.estimate
    allocated = None if estimate is None else estimate.memory.peak_allocated_bytes
    size = "not estimated" if allocated is None else f"{allocated:,} B ({format_bytes(allocated)}) allocated"
    events = ", with events" if planned.point.request.snapshot else ""
    doubt = "" if planned.fits else ", passed over: does not fit"
    return f"{number:4}  {planned.point.name}  {planned.seconds:.0f} s  {size}{events}{doubt}"
