"""The answer for one run: memory, time, verdict, intervals and what they rest on."""

from typing import Annotated

from pydantic import Field

from whatfits.estimator.specs.base import Spec
from whatfits.estimator.specs.enums import Basis, PeakPhase, Verdict
from whatfits.estimator.specs.explanation import Explanation
from whatfits.estimator.specs.run import RunSpec

__all__ = [
    "DeviceBreakdown",
    "DeviceBytes",
    "Estimate",
    "MemoryBreakdown",
    "MemoryEstimate",
    "Provenance",
    "Seconds3",
    "StepTimeParts",
    "TimeEstimate",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class DeviceBytes(Spec):
    """Memory in use on the device, with the 90% interval."""

    low: int
    """5% quantile."""
    median: int
    """Median."""
    high: int
    """95% quantile."""


class Seconds3(Spec):
    """A duration with its 90% interval."""

    low: float
    """5% quantile."""
    median: float
    """Median."""
    high: float
    """95% quantile."""


class MemoryBreakdown(Spec):
    """What is live at the peak; the terms sum to the peak."""

    weights: int = 0
    """Parameters in the dtype they are trained in."""
    master_weights: int = 0
    """The fp32 copy of low-precision weights."""
    gradients: int = 0
    """Gradients of the parameters."""
    optimizer_states: int = 0
    """What the optimizer keeps between steps."""
    activations: int = 0
    """Tensors kept for the backward pass, and inputs."""
    logits_and_loss: int = 0
    """The head's output and the loss path."""
    temporaries: int = 0
    """Tensors that live within one operation or step of the optimizer."""
    communication_buffers: int = 0
    """Buckets, gathered weights and reduce buffers."""
    workspace: int = 0
    """Library workspaces, such as cuBLAS's."""
    rounding_and_remainders: int = 0
    """Bytes lost to the allocator's rounding and to blocks it does not split."""

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return sum(getattr(self, name) for name in type(self).model_fields)


class DeviceBreakdown(Spec):
    """Device memory by owner; the terms sum to the median of `device_bytes`."""

    allocated: int
    """Blocks in use at the peak."""
    allocator_overhead: int
    """What the allocator must hold beyond that."""
    context: int
    """The CUDA context and loaded kernels."""
    communicators: int
    """NCCL's buffers."""

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return self.allocated + self.allocator_overhead + self.context + self.communicators


class MemoryEstimate(Spec):
    """Memory of the busiest device. Fields that only a replay of the allocator gives are null without one."""

    peak_requested_bytes: int
    """Live tensors at the peak."""
    peak_allocated_bytes: int | None
    """Blocks in use at the peak (`torch.cuda.max_memory_allocated`)."""
    peak_reserved_bytes: int | None
    """Segments held at the peak (`torch.cuda.max_memory_reserved`) when memory is plentiful."""
    required_reserved_bytes: int | None
    """The smallest cap on segments with which the step still completes."""
    alloc_retries_expected: bool | None
    """Whether the allocator must release its cache and retry, which is slow."""
    device_bytes: DeviceBytes
    """Memory in use on the device."""
    usable_bytes: int
    """What the driver leaves to the run."""
    headroom_bytes: int
    """usable_bytes less the median of device_bytes; negative when it does not fit."""
    peak_phase: PeakPhase
    """The part of a step in which memory is highest."""
    breakdown: MemoryBreakdown
    """What is live at the peak."""
    device_breakdown: DeviceBreakdown
    """Device memory by owner."""


class StepTimeParts(Spec):
    """Where one optimizer step's time goes, in seconds."""

    compute: float
    """Forward and backward passes."""
    exposed_communication: float
    """Communication not hidden under compute."""
    pipeline_bubble: float
    """Stages waiting for each other."""
    optimizer_step: float
    """The optimizer."""


class TimeEstimate(Spec):
    """Time of one optimizer step."""

    step_time_seconds: Seconds3
    """One optimizer step."""
    tokens_per_second: float
    """Tokens of all GPUs together."""
    tokens_per_second_per_gpu: float
    """Tokens of one GPU."""
    mfu: float | None
    """Model FLOPs utilisation, without recomputation; null where it is not defined."""
    parts: StepTimeParts
    """Where the time goes."""


class Provenance(Spec):
    """What the answer rests on."""

    basis: Basis
    """Measured, calibrated or analytical."""
    profile: str
    """The memory profile used."""
    stack: dict[str, str]
    """Library versions the profile was traced with."""
    kernel: str
    """The attention kernel."""
    calibration: str | None = None
    """The calibration used."""
    assumptions: tuple[str, ...] = ()
    """What was assumed, one sentence each."""


class Estimate(Spec):
    """The answer for one run."""

    fits: Verdict
    """Whether it fits."""
    fit_probability: Fraction
    """How sure that is."""
    memory: MemoryEstimate
    """Memory of the busiest device."""
    time: TimeEstimate | None
    """Time of one step; null where the time model does not know the architecture."""
    provenance: Provenance
    """What the answer rests on."""
    spec: RunSpec
    """The run with everything filled in."""
    explanation: Explanation | None = None
    """What is live at the peak, and the step it lies in, where that was asked for."""
