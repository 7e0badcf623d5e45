"""One measured run: two passes over one model, the first for memory, the second for time.

What records memory slows the steps it records, so that no step is both recorded and timed. The memory pass is the three
steps that the estimator's timeline has: the first, which creates the optimizer's states, an ordinary one, and one that
refreshes projections where the method has any. The time pass has a new optimizer over the same model: warm-up steps,
measured steps, and a refresh step last. In either pass the interval between refreshes is as short as that takes.
"""

from collections.abc import Callable

from torch import nn

from whatfits.estimator.catalog import ResolvedRun, resolve_run
from whatfits.estimator.catalog.config_models import UntracedModelError, keep_facts
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs import (
    AllocatorMode,
    MeasureDevice,
    MeasurementOutcome,
    MeasurementResult,
    MeasureRequest,
    PeakPhase,
    Progress,
    RunSpec,
)
from whatfits.profiler.measure.cases import NUM_STEPS
from whatfits.profiler.measure.devices import CpuDevice, CudaDevice, Device, DeviceMonitor, is_out_of_memory
from whatfits.profiler.measure.driver import measured_environment
from whatfits.profiler.measure.figures import (
    Peaks,
    flops_utilization,
    peaks_of,
    step_times,
    tokens_per_second,
)
from whatfits.profiler.measure.optimizers import measured_recipe, optimizer_package, refresh_interval
from whatfits.profiler.measure.prediction import UntracedError, traced_peak_on_cpu
from whatfits.profiler.measure.probes import CpuProbe, CudaProbe, Probe
from whatfits.profiler.measure.ranks import Ranks, spread
from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.measure.snapshots import write_snapshot
from whatfits.profiler.measure.timing import Timer
from whatfits.profiler.measure.training_run import TrainingRun, build_real_model, place, undisturbed
from whatfits.profiler.trace.config_errors import ConfigError
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.stack import running_stack, short_version

__all__ = ["measure"]

Report = Callable[[Progress], object]

_NO_SEGMENTS = (
    "allocator: expandable has no effect on a CPU, which has no caching allocator: live tensors are counted."
)


def measure(
    request: MeasureRequest, report: Report, *, monitor: DeviceMonitor | None = None
) -> MeasurementResult:
    """Carry out a request.

    Args:
        request: what to measure, and how.
        report: hears how far it is.
        monitor: what knows the GPU's driver.

    Raises:
        InputError: the request names something unknown or asks for what is not measured.
        Exception: whatever the model's or the optimizer's code raises; want of memory is a result.
    """
    resolved = _resolve(request.spec)
    model = resolved.model
    if request.num_layers is not None:
        model = model.model_copy(update={"num_layers": request.num_layers})
    on_cpu = request.device is MeasureDevice.CPU
    recipe, note = measured_recipe(model, resolved.run, on_cpu=on_cpu, seed=request.seed)
    _require_stack(resolved.run.stack)
    ranks = Ranks.from_environment()
    ranks.require(resolved.run.parallelism.world_size)
    cap = resolved.run.hardware.memory_cap_bytes
    device: Device = CpuDevice(cap) if on_cpu else CudaDevice(cap, monitor)
    run = _Run(request, recipe, device, report)
    if note is not None:
        run.notes.append(note)
    if on_cpu and resolved.run.allocator is AllocatorMode.EXPANDABLE:
        run.notes.append(_NO_SEGMENTS)
    if ranks.num_ranks > 1:
        run.notes.append(f"All figures are those of rank {ranks.rank} of {ranks.num_ranks}.")
    with undisturbed(), ranks.joined(device.name):
        run.carry_out()
    peak_flops = None if on_cpu else resolved.gpu.peak_flops_per_second
    return run.result(peak_flops)


def _resolve(run: RunSpec) -> ResolvedRun:
    """The run with everything filled in; a config that nobody has built before is built for its facts, which are kept.

    Raises:
        InputError: the run names something unknown, breaks a rule, or its config makes no model.
    """
    try:
        return resolve_run(run)
    except UntracedModelError as error:
        try:
            keep_facts(error.config, describe(error.config).to_json())
        except ConfigError as refused:
            field = f"model.{refused.field}" if refused.field else "model"
            raise InputError(field, run.model, "a config of transformers", reason=str(refused)) from refused
        return resolve_run(run)


def _require_stack(asked: dict[str, str] | None) -> None:
    """Refuse a run of other library versions than are installed here.

    Raises:
        UnsupportedError: a version asked for is not the installed one.
    """
    running = running_stack()
    for name, version in (asked or {}).items():
        if running.get(name) != short_version(version):
            reason = f"{name} {version} is asked for, and {running.get(name, 'none')} is installed here"
            accepted = ", ".join(f"{known} {number}" for known, number in running.items())
            raise UnsupportedError("stack", {name: version}, accepted, reason=reason)


class _Run:
    """One recipe on one device, and what is known of it so far."""

    def __init__(self, request: MeasureRequest, recipe: Recipe, device: Device, report: Report) -> None:
        self.request, self.recipe, self.device, self.report = request, recipe, device, report
        self.refreshes = refresh_interval(recipe.training.optimizer, recipe.model) is not None
        self.timed_until = request.warmup_steps + request.measured_steps
        """Number of the time pass's steps before the refresh step, which is also the interval."""
        self.probe: CpuProbe | CudaProbe = device.make_probe(history=request.snapshot)
        self.timer: Timer = device.make_timer()
        self.num_steps = 0
        self.num_parameters = 0
        self.out_of_memory: Exception | None = None
        self.ran_out_in: PeakPhase | None = None
        self.package: tuple[str, str] | None = None
        self.traced_peak: int | None = None
        self.notes: list[str] = []

    def carry_out(self) -> None:
        """Build, both passes, and on a CPU the trace; want of memory ends it early and is noted."""
        self._tell("building", 0, 1)
        self.device.open()
        try:
            model = self._build()
            called = self._memory_pass(model)
            self._time_pass(model, called)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._note_out_of_memory(error)
            return
        if self.device.name == "cpu":
            self._trace()

    def result(self, peak_flops: dict[str, float] | None) -> MeasurementResult:
        """Everything that is known."""
        request, recipe = self.request, self.recipe
        peaks: Peaks = peaks_of(self.probe, refreshes=self.refreshes)
        times = step_times(self.timer.seconds(), request, refreshes=self.refreshes)
        speed = tokens_per_second(recipe, times)
        ran_out = self.out_of_memory is not None
        return MeasurementResult(
            outcome=MeasurementOutcome.OUT_OF_MEMORY if ran_out else MeasurementOutcome.COMPLETED,
            reached_step=self.num_steps,
            reached_phase=self.ran_out_in,
            num_layers=recipe.model.num_layers,
            num_parameters=self.num_parameters,
            peaks=peaks.by_phase,
            peak_requested_bytes=peaks.requested_bytes,
            peak_allocated_bytes=peaks.allocated_bytes,
            peak_reserved_bytes=peaks.reserved_bytes,
            times=times,
            tokens_per_second=speed,
            mfu=flops_utilization(recipe, speed, peak_flops, self.num_parameters),
            refresh_interval=self.timed_until if self.refreshes else None,
            readings=self.device.readings(),
            environment=measured_environment(self.device.name, self.package),
            traced_peak_requested_bytes=self.traced_peak,
            snapshot_path=write_snapshot(self.probe) if request.snapshot else None,
            notes=tuple(self.notes),
        )

    def _build(self) -> nn.Module:
        model = build_real_model(self.recipe, self.device.name)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self._tell(
            "building", 1, 1, f"{self.num_parameters} parameters in {self.recipe.model.num_layers} layers"
        )
        return model

    def _memory_pass(self, model: nn.Module) -> nn.Module:
        """The steps of the estimator's timeline; the last one refreshes. Returns the model as it is spread over ranks."""
        with self.probe.recording(self.device.name):
            self.probe.enter("setup", step=-1)
            if self.device.name == "cpu":
                place(model, self.device.name)  # so that the weights are recorded; on a GPU they are counted
            called = spread(self.recipe, model, self.device.name)
            run = self._run(model, called, self.probe, NUM_STEPS - 1)
            self.package = optimizer_package(run.optimizer)
            total = NUM_STEPS + self.request.warmup_steps
            run.steps(range(NUM_STEPS), lambda number: self._done("warmup", number + 1, total))
            self.probe.enter("end", step=NUM_STEPS)
        run.close()
        return called

    def _run(self, model: nn.Module, called: nn.Module, probe: Probe, interval: int) -> TrainingRun:
        steps = interval if self.refreshes else None
        return TrainingRun(self.recipe, model, self.device.name, probe, interval=steps, called=called)

    def _time_pass(self, model: nn.Module, called: nn.Module) -> None:
        warmup = self.request.warmup_steps
        run = self._run(model, called, self.timer, self.timed_until)
        total = NUM_STEPS + warmup
        run.steps(range(warmup), lambda number: self._done("warmup", NUM_STEPS + number + 1, total))
        measured = self.request.measured_steps
        run.steps(
            range(warmup, self.timed_until),
            lambda number: self._done("measuring", number + 1 - warmup, measured),
        )
        if self.refreshes:
            run.steps(range(self.timed_until, self.timed_until + 1), lambda _: self._done("refresh", 1, 1))
        run.close()

    def _note_out_of_memory(self, error: Exception) -> None:
        self.out_of_memory = error
        phases = self.timer.phases or self.probe.phases
        reached = phases[-1].phase if phases else ""
        if not self.timer.phases:
            self.probe.enter("end", step=NUM_STEPS)
        self.ran_out_in = PeakPhase(reached) if reached in set(PeakPhase) else None
        self.notes.append(f"Out of memory: {str(error).splitlines()[0][:500]}")

    def _trace(self) -> None:
        self._tell("tracing", 0, 1)
        try:
            self.traced_peak = traced_peak_on_cpu(self.recipe)
        except UntracedError as error:
            self.notes.append(str(error))
        self._tell("tracing", 1, 1)

    def _done(self, stage: str, done: int, total: int) -> None:
        self.num_steps += 1
        self._tell(stage, done, total)

    def _tell(self, stage: str, done: int, total: int, message: str = "") -> None:
        self.report(Progress(stage=stage, done=done, total=total, message=message))
