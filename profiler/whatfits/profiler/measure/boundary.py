"""The largest micro-batch that a device carries, by trying: few runs, as the estimate says where to begin."""

from collections.abc import Callable
from dataclasses import dataclass

from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs import Estimate
from whatfits.estimator.specs.measurement import (
    MeasureDevice,
    Measurement,
    MeasurementOutcome,
    MeasureRequest,
)
from whatfits.estimator.specs.micro_batch_search import MicroBatchSearch

__all__ = [
    "LARGEST_MICRO_BATCH",
    "ProbeFailedError",
    "find_boundary",
    "find_max_micro_batch",
    "guess_micro_batch",
]

LARGEST_MICRO_BATCH = 2**16
_FIRST_GUESSES = (2, 4)
_MOST_GUESSES = 6


class ProbeFailedError(Exception):
    """A run of the search that neither fitted nor ran out of memory."""

    def __init__(self, measurement: Measurement) -> None:
        failure = measurement.failure
        said = "it was stopped" if failure is None else f"{failure.kind}: {failure.message}"
        size = measurement.request.spec.training.micro_batch_size
        super().__init__(f"micro-batch {size} could not be measured: {said}")
        self.measurement = measurement


def find_boundary(
    fits: Callable[[int], bool], guess: int, largest: int = LARGEST_MICRO_BATCH
) -> tuple[int, int]:
    """The largest size that fits and the smallest that does not; 0 and `largest` + 1 stand for none.

    From the guess in steps of 1, 2, 4, ... to the first answer of the other kind, then by halves.
    Assumes: what fits in a size fits in every smaller one.
    """
    low, high, step = 0, largest + 1, 1
    size = min(max(guess, 1), largest)
    while high - low > 1:
        if fits(size):
            low = size
        else:
            high = size
        if low and high <= largest:
            size = (low + high) // 2
        else:
            size = min(low + step, largest) if low else max(high - step, 1)
            step *= 2
    return low, high


def guess_micro_batch(request: MeasureRequest, ask: Callable[[MeasureRequest], Estimate]) -> int:
    """The largest micro-batch by the estimate; 1 where there is none.

    By the secant method: device bytes, or on a CPU those of live tensors, are close to a line in the size.
    """
    size, known = _FIRST_GUESSES[1], _FIRST_GUESSES[0]
    try:
        before, limit = _taken_and_allowed(request, ask(with_micro_batch(request, known)))
        for _ in range(_MOST_GUESSES):
            taken, _ = _taken_and_allowed(request, ask(with_micro_batch(request, size)))
            per_sequence = (taken - before) / (size - known)
            if per_sequence <= 0:
                break
            better = min(max(int(size + (limit - taken) / per_sequence), 1), LARGEST_MICRO_BATCH)
            if better == size:
                break
            known, before, size = size, taken, better
    except UnsupportedError:
        return 1
    return size


def _taken_and_allowed(request: MeasureRequest, estimate: Estimate) -> tuple[int, int]:
    memory = estimate.memory
    if request.device is MeasureDevice.CPU:
        # A CPU has no cuBLAS, whose workspaces are live throughout.
        return memory.peak_requested_bytes - memory.breakdown.workspace, _cap_of(request)
    return memory.device_bytes.median, memory.usable_bytes


def with_micro_batch(request: MeasureRequest, size: int) -> MeasureRequest:
    """The request at another micro-batch size."""
    training = request.spec.training.model_copy(update={"micro_batch_size": size})
    return request.model_copy(update={"spec": request.spec.model_copy(update={"training": training})})


def _cap_of(request: MeasureRequest) -> int:
    cap = request.spec.hardware.memory_cap_bytes
    if cap is None:
        reason = "a CPU has no memory of its own that a run could fill"
        accepted = "the bytes of live tensors that are allowed (--cap)"
        raise InputError("hardware.memory_cap_bytes", None, accepted, reason=reason)
    return cap


@dataclass(slots=True, kw_only=True)
class _Probes:
    """Runs sizes and keeps what came of them."""

    request: MeasureRequest
    measure: Callable[[MeasureRequest], Measurement]
    cap_bytes: int | None
    measured: list[Measurement]

    def fits(self, size: int) -> bool:
        measurement = self.measure(with_micro_batch(self.request, size))
        result = measurement.result
        if result is None:
            raise ProbeFailedError(measurement)
        self.measured.append(measurement)
        if result.outcome is MeasurementOutcome.OUT_OF_MEMORY:
            return False
        return self.cap_bytes is None or result.peak_requested_bytes <= self.cap_bytes


def find_max_micro_batch(
    request: MeasureRequest,
    measure: Callable[[MeasureRequest], Measurement],
    ask: Callable[[MeasureRequest], Estimate],
) -> MicroBatchSearch:
    """Search the boundary; out of memory is too large, and on a CPU live tensors above the cap are.

    Args:
        request: its micro-batch size is of no account.
        measure: measures one request.
        ask: estimates one.

    Raises:
        InputError: on a CPU, without a cap.
        ProbeFailedError: a run gave no measurement.
    """
    cap = _cap_of(request) if request.device is MeasureDevice.CPU else None
    probes = _Probes(request=request, measure=measure, cap_bytes=cap, measured=[])
    guess = guess_micro_batch(request, ask)
    low, high = find_boundary(probes.fits, guess)
    return MicroBatchSearch(
        max_micro_batch_size=low or None,
        smallest_too_large=high if high <= LARGEST_MICRO_BATCH else None,
        guess=guess,
        limit_bytes=cap,
        probes=tuple(probes.measured),
    )
