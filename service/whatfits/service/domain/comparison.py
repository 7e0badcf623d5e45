"""What was measured beside what was expected: the difference of every figure that both have."""

from statistics import median

from whatfits.estimator.specs import Measurement
from whatfits.estimator.specs.base import Spec

__all__ = ["Comparison", "Difference", "compare"]


class Difference(Spec):
    """One figure, measured and estimated."""

    measured: float
    estimated: float
    difference_fraction: float | None
    """How far the measured one is above the estimated one, as a part of the latter; null where that is 0."""


class Comparison(Spec):
    """Every figure that a measurement and its estimate both have; null where one of them has none."""

    peak_requested_bytes: Difference | None
    peak_allocated_bytes: Difference | None
    peak_reserved_bytes: Difference | None
    device_used_bytes: Difference | None
    step_time_seconds: Difference | None
    """Medians."""
    same_device: bool
    """Whether the estimate is of the device that measured; on a CPU it is of the GPU that the run names."""


def compare(measurement: Measurement) -> Comparison | None:
    """The differences; None without a result, or without an estimate."""
    result, estimate = measurement.result, measurement.estimate
    if result is None or estimate is None:
        return None
    memory, time = estimate.memory, estimate.time
    on_gpu = bool(result.environment.gpu_uuids)
    steps = result.times.step
    return Comparison(
        peak_requested_bytes=_difference(result.peak_requested_bytes, memory.peak_requested_bytes),
        peak_allocated_bytes=_difference(result.peak_allocated_bytes, memory.peak_allocated_bytes),
        peak_reserved_bytes=_difference(result.peak_reserved_bytes, memory.peak_reserved_bytes),
        device_used_bytes=_difference(result.readings.device_used_bytes, memory.device_bytes.median),
        step_time_seconds=_difference(
            median(steps) if steps else None, None if time is None else time.step_time_seconds.median
        ),
        same_device=on_gpu,
    )


def _difference(measured: float | None, estimated: float | None) -> Difference | None:
    if measured is None or estimated is None:
        return None
    fraction = (measured - estimated) / estimated if estimated else None
    return Difference(measured=measured, estimated=estimated, difference_fraction=fraction)
