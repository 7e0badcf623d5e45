"""What is measured of one run, and what came of it: the wire format between a device, the store and whoever asks."""

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from whatfits.estimator.specs.base import MeasuredBytes, NonNegative, PositiveInt, Spec
from whatfits.estimator.specs.enums import PeakPhase
from whatfits.estimator.specs.estimate import Estimate
from whatfits.estimator.specs.run import RunSpec

__all__ = [
    "ClockReadings",
    "DeviceReadings",
    "FailureKind",
    "MeasureDevice",
    "MeasureRequest",
    "MeasuredEnvironment",
    "MeasuredStep",
    "Measurement",
    "MeasurementFailure",
    "MeasurementOutcome",
    "MeasurementResult",
    "MeasurementStatus",
    "PhasePeaks",
    "Progress",
    "StepTimes",
]


class MeasureDevice(StrEnum):
    """What the steps run on."""

    GPU = "gpu"
    """The GPUs that the run names."""
    CPU = "cpu"
    """A CPU, with the bytes of live tensors counted: the twin of the GPU's path where there is none."""


class MeasureRequest(Spec):
    """One run to measure, and how."""

    spec: RunSpec
    """The run. On a CPU its hardware is what the estimate beside the measurement is of."""
    device: MeasureDevice = MeasureDevice.GPU
    """What the steps run on."""
    num_layers: PositiveInt | None = None
    """Fewer layers than the model has, where the whole one would not fit or take too long."""
    warmup_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] = 3
    """Steps before the measured ones; the first creates the optimizer's states."""
    measured_steps: Annotated[int, Field(ge=1, le=1000, strict=True)] = 10
    """Steps whose times are kept."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0
    """Of the weights and the inputs, both random."""
    snapshot: bool = False
    """Whether to keep the caching allocator's history of one step of each kind."""
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 600.0
    """Wall-clock time after which the run is killed."""


class MeasuredStep(StrEnum):
    """Kinds of step that differ in memory."""

    FIRST = "first"
    """The one that creates the optimizer's states."""
    STEADY = "steady"
    """An ordinary one."""
    REFRESH = "refresh"
    """One that refreshes projections, where the method has any."""


class PhasePeaks(Spec):
    """The highest bytes in one phase of all steps of a kind. Null is what the device cannot tell."""

    step: MeasuredStep
    """Kind of step."""
    phase: PeakPhase
    """Part of it."""
    peak_requested_bytes: MeasuredBytes
    """Live tensors."""
    peak_allocated_bytes: MeasuredBytes | None = None
    """Blocks in use."""
    peak_active_bytes: MeasuredBytes | None = None
    """Blocks in use or waiting for a stream."""
    peak_reserved_bytes: MeasuredBytes | None = None
    """Segments held."""


class StepTimes(Spec):
    """Every sample, in seconds, of the measured steps in order; micro-batches of one step are summed."""

    forward: tuple[NonNegative, ...]
    """Forward pass without the loss function."""
    loss: tuple[NonNegative, ...]
    """Loss function; empty where the model's code does not set it apart."""
    backward: tuple[NonNegative, ...]
    """Backward pass, with a layer-wise update inside."""
    optimizer_step: tuple[NonNegative, ...]
    """Optimizer, clipping included."""
    step: tuple[NonNegative, ...]
    """The whole step."""
    refresh_step: tuple[NonNegative, ...] = ()
    """Whole steps that refreshed projections; none of them is in the others."""


class ClockReadings(Spec):
    """What the driver reported while the measured steps ran."""

    sm_clock_hz: tuple[NonNegative, ...]
    """Clock of the multiprocessors."""
    power_watts: tuple[NonNegative, ...]
    """Board power."""
    temperature_celsius: tuple[float, ...] = ()
    """Of the GPU."""
    throttle_reasons: tuple[str, ...] = ()
    """Every reason for lower clocks that was seen, by NVML's name without its prefix."""


class DeviceReadings(Spec):
    """What the driver knows of the device beside the allocator. Null is what it did not tell."""

    context_bytes: MeasuredBytes | None = None
    """Device bytes that this process took before its first tensor."""
    device_used_bytes: MeasuredBytes | None = None
    """Highest use of the device over all processes, by NVML."""
    process_used_bytes: MeasuredBytes | None = None
    """Highest use by this process, by NVML."""
    num_alloc_retries: int | None = None
    """Times the allocator released its cache and tried again."""
    num_ooms: int | None = None
    """Times it failed."""
    clocks: ClockReadings | None = None
    """Clocks and power."""


class MeasuredEnvironment(Spec):
    """Where it was measured, with what."""

    device_name: str
    """As the driver or the system names it."""
    gpu_uuids: tuple[str, ...] = ()
    """Of the GPUs used."""
    device_total_bytes: MeasuredBytes | None = None
    """What torch reports as a device's total."""
    compute_capability: str | None = None
    """Of the GPU."""
    driver: str | None = None
    """Version of the driver."""
    packages: dict[str, str]
    """Versions of torch, transformers and of the library that the optimizer comes from."""
    torch_cuda: str | None = None
    """CUDA version that torch was built for."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and machine."""
    commit: str | None = None
    """Of the checkout, null for an installed package."""


class FailureKind(StrEnum):
    """Why a run gave no measurement."""

    REFUSED = "refused"
    """The request cannot be measured as it stands."""
    RAISED = "raised"
    """The model's or the optimizer's code raised."""
    TIMED_OUT = "timed_out"
    """It took longer than it may."""
    DIED = "died"
    """The process ended without an answer, such as by the system's out-of-memory killer."""
    AGENT_LOST = "agent_lost"
    """The agents that ran it went away, as often as is tried."""
    NOT_STORED = "not_stored"
    """Its result could not be written, such as on a full disk."""


class MeasurementFailure(Spec):
    """Why there is no result."""

    kind: FailureKind
    """Kind of reason."""
    message: str
    """What happened, in words."""
    field: str | None = None
    """The part of the request that is at fault, where one is."""


class MeasurementOutcome(StrEnum):
    """What a run that was carried out showed."""

    COMPLETED = "completed"
    """All steps ran."""
    OUT_OF_MEMORY = "out_of_memory"
    """The device's memory, or the cap, did not suffice; figures are of what came before."""


class MeasurementResult(Spec):
    """What a device did."""

    outcome: MeasurementOutcome
    """Whether it had memory enough."""
    reached_step: int
    """Steps completed, of all kinds."""
    reached_phase: PeakPhase | None
    """Phase in which memory ran out; null before the first step, and when all steps ran."""
    num_layers: int
    """Layers of the model that was built."""
    num_parameters: int
    """Its parameters."""
    peaks: tuple[PhasePeaks, ...]
    """Per kind of step and phase."""
    peak_requested_bytes: MeasuredBytes
    """Most bytes of live tensors."""
    peak_allocated_bytes: MeasuredBytes | None
    """Most bytes in blocks in use; null on a CPU."""
    peak_reserved_bytes: MeasuredBytes | None
    """Most bytes in segments; null on a CPU."""
    times: StepTimes
    """Step times."""
    tokens_per_second: float | None
    """Tokens of a global batch by the median step; null without a completed measured step."""
    mfu: float | None
    """Model FLOPs utilisation; null on a CPU and where it is not defined."""
    refresh_interval: int | None = None
    """Steps between refreshes in this run, which is shorter than usual so that one is seen."""
    readings: DeviceReadings = DeviceReadings()
    """What the driver told."""
    environment: MeasuredEnvironment
    """Where and with what."""
    traced_peak_requested_bytes: MeasuredBytes | None = None
    """On a CPU: the same step's peak by a trace with the CPU's kernels."""
    snapshot_path: str | None = None
    """File of the allocator's history on the agent's machine."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures should know, one sentence each."""


class Progress(Spec):
    """How far a run is."""

    stage: str
    """`queued`, `building`, `warmup`, `measuring`, `refresh` or `tracing`."""
    done: int = 0
    """Steps of the stage done."""
    total: int = 0
    """Steps of the stage."""
    message: str = ""
    """More, in words."""


class MeasurementStatus(StrEnum):
    """Where a measurement stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """There is a result; out of memory is one."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class Measurement(Spec):
    """A request and everything known of it."""

    id: str
    """Unique."""
    campaign: str | None = None
    """The campaign it belongs to."""
    status: MeasurementStatus
    """Where it stands."""
    queue: str
    """The queue of devices it waits in."""
    request: MeasureRequest
    """What was asked, with everything filled in."""
    estimate: Estimate | None = None
    """What was expected when it was asked; null where the estimator does not model the run."""
    result: MeasurementResult | None = None
    """What the device did."""
    failure: MeasurementFailure | None = None
    """Why there is none."""
    warning: str | None = None
    """What whoever asked should know, such as that no agent with such a device is registered."""
    agent: str | None = None
    """The agent that has it or had it last."""
    attempts: int = 0
    """Times an agent began it."""
    created_at: AwareDatetime
    """When it was asked."""
    started_at: AwareDatetime | None = None
    """When an agent first began it."""
    finished_at: AwareDatetime | None = None
    """When it became final."""
    source: str = "local"
    """`local`, or where an imported one comes from."""
