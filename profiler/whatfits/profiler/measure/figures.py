"""From what was recorded and timed to the figures of a result."""

from dataclasses import dataclass
from math import prod
from statistics import median

from whatfits.estimator.specs import (
    MeasuredStep,
    MeasureRequest,
    Method,
    PeakPhase,
    PhasePeaks,
    StepTimes,
    expand_precision,
)
from whatfits.estimator.time.step import model_flops_utilization
from whatfits.estimator.timing import timed_model
from whatfits.profiler.measure.cases import NUM_STEPS
from whatfits.profiler.measure.probes import CpuProbe, CudaProbe, PhaseCounters
from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.measure.timing import StepSeconds

__all__ = ["Peaks", "flops_utilization", "peaks_of", "step_times", "tokens_per_second"]

_COUNTERS = ("peak_requested_bytes", "peak_allocated_bytes", "peak_active_bytes", "peak_reserved_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The highest bytes of the memory pass; None is what the device cannot tell."""

    by_phase: tuple[PhasePeaks, ...]
    requested_bytes: int
    allocated_bytes: int | None
    reserved_bytes: int | None


def peaks_of(probe: CpuProbe | CudaProbe, *, refreshes: bool) -> Peaks:
    """Peaks by kind of step and phase, and of all, the model's way to the device included."""
    if isinstance(probe, CpuProbe):
        probe.events()  # counts what its phases held
    known = [phase for phase in probe.phases if phase.counters]
    by_phase = tuple(
        PhasePeaks.model_validate({"step": kind, "phase": phase, **_highest(found)})
        for kind in MeasuredStep
        for phase in PeakPhase
        if (found := [p for p in known if p.phase == phase and _kind(p.step, refreshes=refreshes) is kind])
    )
    highest = _highest(known)
    return Peaks(
        by_phase=by_phase,
        requested_bytes=highest.get("peak_requested_bytes") or 0,
        allocated_bytes=highest.get("peak_allocated_bytes"),
        reserved_bytes=highest.get("peak_reserved_bytes"),
    )


def _kind(step: int, *, refreshes: bool) -> MeasuredStep:
    if step == 0:
        return MeasuredStep.FIRST
    return MeasuredStep.REFRESH if refreshes and step == NUM_STEPS - 1 else MeasuredStep.STEADY


def _highest(phases: list[PhaseCounters]) -> dict[str, int | None]:
    return {
        name: max((p.counters[name] for p in phases if name in p.counters), default=None)
        for name in _COUNTERS
    }


def step_times(seconds: dict[int, StepSeconds], request: MeasureRequest, *, refreshes: bool) -> StepTimes:
    """Samples of the measured steps that were completed, in order; the refresh step apart."""
    first, last = request.warmup_steps, request.warmup_steps + request.measured_steps
    measured = [seconds[number] for number in range(first, last) if number in seconds]
    by_phase = {
        phase: tuple(step.phases[phase] for step in measured if phase in step.phases) for phase in PeakPhase
    }
    return StepTimes(
        forward=by_phase[PeakPhase.FORWARD],
        loss=by_phase[PeakPhase.LOSS],
        backward=by_phase[PeakPhase.BACKWARD],
        optimizer_step=by_phase[PeakPhase.OPTIMIZER_STEP],
        step=tuple(step.total for step in measured),
        refresh_step=(seconds[last].total,) if refreshes and last in seconds else (),
    )


def tokens_per_second(recipe: Recipe, times: StepTimes) -> float | None:
    """Tokens of a global batch by the median step; None without one, and for a model that takes no tokens."""
    if not times.step or not recipe.model.takes_tokens:
        return None
    training = recipe.training
    per_step = prod(
        (
            training.micro_batch_size,
            training.seq_len,
            training.grad_accum_steps,
            recipe.parallelism.dp_degree,
        )
    )
    return per_step / median(times.step)


def flops_utilization(
    recipe: Recipe,
    tokens_per_second: float | None,
    peak_flops_per_second: dict[str, float] | None,
    num_parameters: int,
) -> float | None:
    """MFU of one GPU; None where there is no speed, no known peak, or no such count of the model's work."""
    training = recipe.training
    dtype = expand_precision(training.precision, training.framework).compute_dtype
    peak = (peak_flops_per_second or {}).get(str(dtype))
    counted = recipe.model.model_copy(update={"num_parameters": num_parameters})
    model = timed_model(counted)
    if tokens_per_second is None or peak is None or model is None or training.method is not Method.FULL:
        return None
    per_gpu = tokens_per_second / recipe.parallelism.dp_degree
    return float(
        model_flops_utilization(
            model,
            seq_len=training.seq_len,
            tokens_per_second_per_gpu=per_gpu,
            peak_flops_per_second=peak,
        )
    )
