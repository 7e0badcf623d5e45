"""The memory part of an answer: from the table for many candidates, with a replay for the one that is shown."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.breakdown import breakdown_at, phase_at
from whatfits.estimator.memory.compose import StepMemory, StepPeaks
from whatfits.estimator.memory.device import (
    ALLOCATOR_OVERHEAD,
    FSDP_OVERHEAD,
    LARGEST_BLOCK_OVERHEAD,
    REPLAY_ERROR,
    Interval,
    communicator_bytes,
    context_bytes,
)
from whatfits.estimator.memory.peak import FloatArray
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.replay import Replays
from whatfits.estimator.memory.timeline import Timeline
from whatfits.estimator.memory.verdict import Usable, combine, fit_probability
from whatfits.estimator.specs import (
    AllocatorMode,
    DeviceBreakdown,
    DeviceBytes,
    GpuSpec,
    MemoryBreakdown,
    MemoryEstimate,
    PeakPhase,
)

__all__ = ["Device", "memory_from_replay", "memory_from_table", "table_device_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What surrounds the allocator's blocks on one device."""

    gpu: GpuSpec
    usable: Usable
    num_gpus: int

    @property
    def context(self) -> Interval:
        """CUDA context."""
        return context_bytes(self.gpu)

    @property
    def communicators(self) -> Interval:
        """NCCL."""
        return communicator_bytes(self.num_gpus)

    def probability(self, memory: MemoryEstimate) -> float:
        """Probability that the memory fits."""
        device = memory.device_bytes
        return fit_probability(device.low, device.median, device.high, self.usable)


def table_device_bytes(
    peaks: NDArray[np.float64], largest_blocks: NDArray[np.float64], placement: Placement, device: Device
) -> tuple[NDArray[np.float64], ...]:
    """Low, median and high device bytes of allocated peaks known from the table only.

    overhead = x allocated + y largest block, with x and y each at its low, median or high together.
    `largest_blocks`: bytes of the largest block each configuration's micro-batch allocates.
    """
    overhead = FSDP_OVERHEAD if placement is Placement.FSDP else ALLOCATOR_OVERHEAD
    block = LARGEST_BLOCK_OVERHEAD
    slack = [
        x * peaks + y * largest_blocks
        for x, y in (
            (overhead.low, block.low),
            (overhead.median, block.median),
            (overhead.high, block.high),
        )
    ]
    return combine(peaks, slack, device.context, device.communicators)


def memory_from_table(
    memory: StepMemory, sizes: FloatArray, peaks: StepPeaks, index: int, device: Device
) -> MemoryEstimate:
    """Memory of one configuration of `sizes` without a replay; replay-only fields are null."""
    peak, row = int(peaks.nbytes[index]), int(peaks.row[index])
    one = slice(index, index + 1)
    bounds = table_device_bytes(peaks.nbytes[one], sizes[one].max(axis=1), memory.tensors.placement, device)
    later = bool(peaks.later_micro_batch[index])
    return _assemble(
        requested=peak,
        replayed=None,
        allocated=peak,
        bounds=bounds,
        device=device,
        phase=phase_at(memory, row),
        breakdown=breakdown_at(memory, sizes[index], row, peak, later_micro_batch=later),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replayed:
    peak_reserved: int
    required_reserved: int
    retries_expected: bool


def memory_from_replay(
    timeline: Timeline, requested: int, mode: AllocatorMode, device: Device
) -> MemoryEstimate:
    """Memory of one run with its allocations replayed; `requested` is the table's peak."""
    replays = Replays(timeline.events, mode=mode)
    unlimited = replays.at()
    replayed = _fit_into(replays, device, unlimited.peak_reserved_bytes)
    allocated = unlimited.peak_allocated_bytes
    fixed = np.array([float(replayed.required_reserved)])
    error = REPLAY_ERROR
    slack = [np.array([allocated * x]) for x in (error.low, error.median, error.high)]
    bounds = combine(fixed, slack, device.context, device.communicators)
    peak_event = unlimited.peak_event
    assert peak_event is not None, "a run allocates"
    return _assemble(
        requested=requested,
        replayed=replayed,
        allocated=allocated,
        bounds=bounds,
        device=device,
        phase=list(PeakPhase)[int(timeline.phase[peak_event])],
        breakdown=_breakdown_of(timeline, peak_event, allocated),
    )


def _fit_into(replays: Replays, device: Device, reserved: int) -> _Replayed:
    """The smallest sufficient cap, and whether the cap this device leaves makes the allocator release and retry.

    Completing is not strictly monotone in the cap, so the device's own cap is tried besides the search.
    """
    cap = int(device.usable.nbytes - device.context.median - device.communicators.median)
    required = replays.required_reserved_bytes()
    if reserved <= cap:
        return _Replayed(peak_reserved=reserved, required_reserved=required, retries_expected=False)
    capped = replays.at(max(cap, 0))
    if capped.failed_at is None:
        required = min(required, capped.peak_reserved_bytes)
    return _Replayed(
        peak_reserved=reserved, required_reserved=required, retries_expected=capped.num_alloc_retries > 0
    )


def _breakdown_of(timeline: Timeline, peak_event: int, allocated: int) -> MemoryBreakdown:
    """Requested bytes live at an event by purpose; what the blocks hold beyond is rounding and remainders."""
    terms = timeline.live_by_category(peak_event)
    return MemoryBreakdown(**terms, rounding_and_remainders=allocated - sum(terms.values()))


def _assemble(
    *,
    requested: int,
    replayed: _Replayed | None,
    allocated: int,
    bounds: tuple[NDArray[np.float64], ...],
    device: Device,
    phase: PeakPhase,
    breakdown: MemoryBreakdown,
) -> MemoryEstimate:
    low, median, high = (round(float(b[0])) for b in bounds)
    context, communicators = round(device.context.median), round(device.communicators.median)
    return MemoryEstimate(
        peak_requested_bytes=requested,
        peak_allocated_bytes=allocated if replayed else None,
        peak_reserved_bytes=replayed.peak_reserved if replayed else None,
        required_reserved_bytes=replayed.required_reserved if replayed else None,
        alloc_retries_expected=replayed.retries_expected if replayed else None,
        device_bytes=DeviceBytes(low=low, median=median, high=high),
        usable_bytes=device.usable.nbytes,
        headroom_bytes=device.usable.nbytes - median,
        peak_phase=phase,
        breakdown=breakdown,
        device_breakdown=DeviceBreakdown(
            allocated=allocated,
            allocator_overhead=median - allocated - context - communicators,
            context=context,
            communicators=communicators,
        ),
    )
