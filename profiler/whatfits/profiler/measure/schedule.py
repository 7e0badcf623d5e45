"""Carries out a campaign within a time: points in their order, several at once where memory allows, each kept at once."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import Estimate, Verdict
from whatfits.estimator.specs.measurement import MeasureDevice, Measurement, MeasurementStatus, MeasureRequest
from whatfits.profiler.measure.cases import NUM_STEPS
from whatfits.profiler.measure.local import expected
from whatfits.profiler.measure.standing import Point

__all__ = ["Planned", "ResultFile", "plan_point", "request_key", "run_schedule"]

_START_SECONDS = 12.0
"""A first guess at loading torch and transformers; what the points really take replaces it as they end."""
_BUILD_SECONDS_PER_PARAMETER = 2e-8
"""A first guess at drawing random weights on one core."""
_CPU_STEP_SECONDS = 1.0
"""A first guess at a step of the tiny models on a CPU."""
_LEAST_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A point and what is expected of it."""

    point: Point
    estimate: Estimate | None
    seconds: float
    """From start to end, by the estimate."""

    @property
    def device_bytes(self) -> int | None:
        """What it takes of the device; None where nothing says."""
        return None if self.estimate is None else self.estimate.memory.device_bytes.high

    @property
    def fits(self) -> bool:
        """Whether it is worth a try."""
        return self.estimate is None or self.estimate.fits is not Verdict.NO


def plan_point(point: Point) -> Planned:
    """What the estimate says of a point."""
    request = point.request
    try:
        estimate: Estimate | None = expected(request)
    except UnsupportedError:
        estimate = None
    step_seconds = 0.0
    if request.device is MeasureDevice.CPU:
        step_seconds = _CPU_STEP_SECONDS
    elif estimate is not None and estimate.time is not None:
        step_seconds = estimate.time.step_time_seconds.high
    num_steps = NUM_STEPS + request.warmup_steps + request.measured_steps + 1
    building = resolve_model(request.spec.model)[0].num_parameters * _BUILD_SECONDS_PER_PARAMETER
    return Planned(
        point=point, estimate=estimate, seconds=_START_SECONDS + building + num_steps * step_seconds
    )


def request_key(request: MeasureRequest) -> str:
    """What makes two requests the same question: all but how long they may take and whether events are kept."""
    return json.dumps(
        request.model_dump(mode="json", exclude={"timeout_seconds", "snapshot"}), sort_keys=True
    )


class ResultFile:
    """Measurements as JSON lines, each on disk before the next point; a line cut short by a crash is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Measurement]:
        """Everything in the file."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(Measurement.model_validate_json(line))
            except ValueError:
                continue
        return found

    def done(self) -> set[str]:
        """Keys of the requests that have a result."""
        return {
            request_key(each.request) for each in self.read() if each.status is MeasurementStatus.SUCCEEDED
        }

    def append(self, measurement: Measurement) -> None:
        """Add one, and see it on the disk; a line that a crash cut short is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(measurement.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class _Room:
    """Bytes of the device that points share; one that nobody has estimated gets all of it."""

    def __init__(self, total: int) -> None:
        self._total, self._free = total, total
        self._changed = threading.Condition()

    def take(self, nbytes: int | None) -> int:
        """Wait for room, and take it."""
        wanted = self._total if nbytes is None else min(nbytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        return wanted

    def give_back(self, nbytes: int) -> None:
        """Make room."""
        with self._changed:
            self._free += nbytes
            self._changed.notify_all()


@dataclass(slots=True, kw_only=True)
class _Clock:
    """How long points take beside what was expected of them."""

    now: Callable[[], float]
    ends_at: float
    ratios: list[float] = field(default_factory=list)

    def remaining(self) -> float:
        """Seconds until the end."""
        return self.ends_at - self.now()

    def allows(self, planned: Planned) -> bool:
        """Whether a point would end in time."""
        return planned.seconds * (median(self.ratios) if self.ratios else 1.0) <= self.remaining()


def run_schedule(
    planned: Sequence[Callable[[], Planned]],
    measure: Callable[[Planned, float], Measurement],
    *,
    seconds: float,
    jobs: int,
    usable_bytes: int,
    now: Callable[[], float] = time.monotonic,
) -> list[Planned]:
    """Measure points in their order until the time is used up.

    Args:
        planned: makes each point's plan, when its turn comes.
        measure: measures one, within seconds.
        seconds: time for all.
        jobs: points at a time.
        usable_bytes: of the device, for all of them together.
        now: the clock.

    Returns:
        The points that were started. One that would not end in time is passed over for shorter ones.
    """
    clock = _Clock(now=now, ends_at=now() + seconds)
    room, started, waiting = _Room(usable_bytes), list[Planned](), iter(planned)
    turn = threading.Lock()

    def next_point() -> Planned | None:
        with turn:
            for make in waiting:
                if clock.remaining() < _LEAST_SECONDS:
                    return None
                plan = make()
                if plan.fits and clock.allows(plan):
                    started.append(plan)
                    return plan
        return None

    def work() -> None:
        while (plan := next_point()) is not None:
            taken = room.take(plan.device_bytes if jobs > 1 else 0)
            began = clock.now()
            try:
                measure(plan, max(clock.remaining(), _LEAST_SECONDS))
            finally:
                room.give_back(taken)
            clock.ratios.append((clock.now() - began) / plan.seconds)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        list(pool.map(lambda _: work(), range(jobs)))  # raises what a point raised
    return started
