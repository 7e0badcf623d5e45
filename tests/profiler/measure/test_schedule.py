"""Points are measured in order while time and memory last; results outlive whoever was writing them."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.factories import make_measure_request, make_measurement_result
from tests.fakes import make_estimate
from whatfits.estimator.specs import Verdict
from whatfits.estimator.specs.measurement import Measurement, MeasureRequest
from whatfits.estimator.units import GIB
from whatfits.profiler.measure.schedule import Planned, ResultFile, plan_point, request_key, run_schedule
from whatfits.profiler.measure.standing import Point


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def make_request(size: int = 1) -> MeasureRequest:
    return make_measure_request(spec={"training": {"micro_batch_size": size}})


def make_planned(size: int, seconds: float = 10.0, fits: Verdict = Verdict.YES) -> Planned:
    request = make_request(size)
    estimate = make_estimate(request.spec, fits=fits)
    return Planned(point=Point(name=f"p{size}", request=request), estimate=estimate, seconds=seconds)


def make_measurement(request: MeasureRequest, status: str = "succeeded") -> Measurement:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    return Measurement.model_validate(
        {
            "id": f"m{request.spec.training.micro_batch_size}",
            "status": status,
            "queue": "cpu/x1",
            "request": request,
            "result": make_measurement_result() if status == "succeeded" else None,
            "created_at": now,
            "started_at": now,
            "finished_at": now,
        }
    )


def plans(*planned: Planned) -> list[Callable[[], Planned]]:
    return [lambda each=each: each for each in planned]  # type: ignore[misc]  # a default binds the loop's value


def run(
    planned: list[Callable[[], Planned]], *, seconds: float, takes: float
) -> tuple[list[str], list[tuple[str, float]]]:
    """The names that were started, and those measured with the time they were given."""
    clock, measured = FakeClock(), list[tuple[str, float]]()

    def measure(plan: Planned, allowed: float) -> Measurement:
        measured.append((plan.point.name, allowed))
        clock.time += takes
        return make_measurement(plan.point.request)

    started = run_schedule(planned, measure, seconds=seconds, jobs=1, usable_bytes=80 * GIB, now=clock)
    return [plan.point.name for plan in started], measured


def test_points_are_measured_in_order_until_the_time_is_used_up() -> None:
    started, measured = run(plans(*map(make_planned, range(1, 9))), seconds=35, takes=10)

    assert started == ["p1", "p2", "p3"]
    assert measured == [("p1", 35.0), ("p2", 25.0), ("p3", 15.0)]


def test_what_points_really_take_corrects_what_is_expected_of_the_next() -> None:
    slow, _ = run(plans(*map(make_planned, range(1, 9))), seconds=90, takes=30)
    fast, _ = run(plans(*map(make_planned, range(1, 9))), seconds=40, takes=5)

    assert slow == ["p1", "p2", "p3"]
    assert fast == [f"p{number}" for number in range(1, 9)]


def test_a_point_too_long_for_the_rest_is_passed_over_for_shorter_ones() -> None:
    started, _ = run(plans(make_planned(1), make_planned(2, 60.0), make_planned(3)), seconds=30, takes=10)

    assert started == ["p1", "p3"]


def test_what_does_not_fit_is_not_tried() -> None:
    started, _ = run(plans(make_planned(1, fits=Verdict.NO), make_planned(2)), seconds=100, takes=10)

    assert started == ["p2"]


def test_points_at_a_time_share_the_device_s_memory() -> None:
    """Of 3 at a time 2 fit: each takes half of the device and more than a third."""
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(2, timeout=20)

    def measure(plan: Planned, _: float) -> Measurement:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        return make_measurement(plan.point.request)

    one = make_planned(1).device_bytes
    assert one is not None
    started = run_schedule(
        plans(*map(make_planned, range(1, 5))), measure, seconds=1000, jobs=3, usable_bytes=2 * one
    )

    assert len(started) == 4
    assert most == 2


def test_an_error_of_the_campaign_itself_is_not_swallowed() -> None:
    def measure(plan: Planned, _: float) -> Measurement:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_schedule(plans(make_planned(1)), measure, seconds=100, jobs=2, usable_bytes=80 * GIB)


def test_results_are_kept_as_lines_and_a_line_cut_short_is_passed_over(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "deep" / "results.jsonl")
    assert file.read() == []
    file.append(make_measurement(make_request(1)))
    whole = file.path.read_text()
    file.path.write_text(whole + whole[:50])

    file.append(make_measurement(make_request(2)))
    file.append(make_measurement(make_request(3), "failed"))

    assert [each.id for each in file.read()] == ["m1", "m2", "m3"]
    assert file.done() == {request_key(make_request(1)), request_key(make_request(2))}


def test_a_request_s_key_leaves_out_how_it_is_carried_out() -> None:
    request = make_request()
    again = request.model_copy(update={"timeout_seconds": 3.0, "snapshot": True})

    assert request_key(again) == request_key(request)
    assert request_key(request.model_copy(update={"seed": 1})) != request_key(request)


def test_a_longer_step_is_expected_to_take_longer() -> None:
    def seconds(**training: object) -> float:
        request = make_measure_request(device="gpu", spec={"training": training}, measured_steps=100)
        return plan_point(Point(name="p", request=request)).seconds

    assert seconds(micro_batch_size=64, seq_len=1024) > seconds(micro_batch_size=1, seq_len=1024) + 1


def test_a_point_that_nobody_can_estimate_is_planned_all_the_same() -> None:
    request = make_measure_request(spec={"training": {"compile": True}})

    planned = plan_point(Point(name="p", request=request))

    assert (planned.estimate, planned.device_bytes, planned.fits) == (None, None, True)
    assert planned.seconds > 0
