"""A measurement in a terminal: what the device did beside what was expected, then where it was done."""

from statistics import median

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from whatfits.estimator.specs.kernel_times import MicroBenchmark
from whatfits.estimator.specs.measurement import (
    MeasureDevice,
    Measurement,
    MeasurementOutcome,
    MeasurementResult,
)
from whatfits.estimator.specs.micro_batch_search import MicroBatchSearch
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.service.cli.output import build_table, print_rendered
from whatfits.service.cli.wording import word_optimizer, word_placement, word_training

_PEAKS = (
    ("requested (live tensors)", "peak_requested_bytes"),
    ("allocated (max_memory_allocated)", "peak_allocated_bytes"),
    ("reserved (max_memory_reserved)", "peak_reserved_bytes"),
)


def render_measurement(measurement: Measurement) -> None:
    """Print a run that was carried out."""
    result = measurement.result
    assert result is not None, "a run without a result is an error"
    print_rendered(
        _word_outcome(result),
        _word_run(measurement),
        "",
        _build_peak_table(measurement, result),
        "",
        _build_phase_table(result),
        "",
        _build_time_table(measurement, result),
        "",
        *_word_where(measurement, result),
    )


def render_search(search: MicroBatchSearch) -> None:
    """Print what was tried and what fits."""
    table = build_table(
        "micro-batch", "", "requested", "reserved", right=("micro-batch", "requested", "reserved")
    )
    for probe in search.probes:
        result = probe.result
        assert result is not None, "a run without a result ends the search"
        size = probe.request.spec.training.micro_batch_size
        fits = search.max_micro_batch_size is not None and size <= search.max_micro_batch_size
        table.add_row(
            str(size),
            "runs" if fits else "too large",
            format_bytes(result.peak_requested_bytes),
            _shown(result.peak_reserved_bytes),
        )
    if search.max_micro_batch_size is None:
        answer = Text("not even one sequence runs", style="bold red")
    else:
        answer = Text(f"largest micro-batch: {search.max_micro_batch_size}", style="bold green")
    print_rendered(answer, f"the estimate's guess was {search.guess}", "", table)


def render_kernels(found: MicroBenchmark) -> None:
    """Print a line per kernel: its median time and what that is in rates."""
    headings = ("median", "TFLOPS", "GB/s")
    table = build_table("kernel", "shape", "dtype", *headings, right=headings)
    for kernel in found.kernels:
        seconds = median(kernel.samples_seconds)
        table.add_row(
            kernel.kernel,
            " ".join(f"{name}={value}" for name, value in kernel.shape.items()),
            kernel.dtype,
            format_seconds(seconds),
            "-" if kernel.flops is None else f"{kernel.flops / seconds / 1e12:.3g}",
            "-" if kernel.bytes is None else f"{kernel.bytes / seconds / 1e9:.3g}",
        )
    environment = found.environment
    print_rendered(
        f"{environment.device_name}, torch {environment.packages.get('torch', 'unknown')}", "", table
    )


def _word_outcome(result: MeasurementResult) -> Text:
    if result.outcome is MeasurementOutcome.COMPLETED:
        return Text("completed", style="bold green") + f": {result.reached_step} steps"
    phase = "before the first step" if result.reached_phase is None else f"in {result.reached_phase}"
    return Text("out of memory", style="bold red") + f" {phase}, after {result.reached_step} steps"


def _word_run(measurement: Measurement) -> str:
    run = measurement.request.spec
    model = run.model if isinstance(run.model, str) else "the given config"
    layers = "" if measurement.request.num_layers is None else f" at {measurement.request.num_layers} layers"
    training = run.training
    return (
        f"{model}{layers}, {word_training(training)}, {word_optimizer(training.optimizer)}, "
        f"micro-batch {training.micro_batch_size} x {training.seq_len} tokens, "
        f"checkpointing {training.checkpointing_policy or training.activation_checkpointing}, "
        f"{word_placement(run.parallelism)}"
    )


def _build_peak_table(measurement: Measurement, result: MeasurementResult) -> Table:
    """Measured beside estimated. On a CPU the kernels and their bytes are other than on the GPU that is estimated."""
    on_cpu = measurement.request.device is MeasureDevice.CPU
    gpu = measurement.request.spec.hardware.gpu
    headings = (
        ("measured", "traced for a CPU", "difference") if on_cpu else ("measured", "estimated", "difference")
    )
    table = build_table("", *headings, right=headings, title="Peaks, bytes")
    memory = None if measurement.estimate is None else measurement.estimate.memory
    for words, name in _PEAKS:
        measured = getattr(result, name)
        expected = getattr(memory, name, None)
        if on_cpu:
            if measured is None:
                continue
            expected = result.traced_peak_requested_bytes
        table.add_row(words, _count(measured), _count(expected), _difference(measured, expected))
    if on_cpu and memory is not None:
        table.add_row(f"requested, estimated on {gpu}", "", _count(memory.peak_requested_bytes), "")
    return table


def _build_phase_table(result: MeasurementResult) -> Table:
    headings = ("requested", "allocated", "reserved")
    table = build_table("step", "phase", *headings, right=headings, title="Peaks by phase")
    for peak in result.peaks:
        table.add_row(
            str(peak.step),
            str(peak.phase),
            format_bytes(peak.peak_requested_bytes),
            _shown(peak.peak_allocated_bytes),
            _shown(peak.peak_reserved_bytes),
        )
    return table


def _build_time_table(measurement: Measurement, result: MeasurementResult) -> Table:
    table = build_table(
        "", "measured", "estimated", right=("measured", "estimated"), title="One optimizer step"
    )
    times = result.times
    on_gpu = measurement.request.device is MeasureDevice.GPU
    expected = measurement.estimate.time if on_gpu and measurement.estimate is not None else None
    seconds = "-" if expected is None else format_seconds(expected.step_time_seconds.median)
    table.add_row(f"step (median of {len(times.step)})", _median(times.step), seconds)
    for name in ("forward", "loss", "backward", "optimizer_step", "refresh_step"):
        samples = getattr(times, name)
        if samples:
            table.add_row(f"  {name.replace('_', ' ')}", _median(samples), "")
    tokens = "-" if result.tokens_per_second is None else f"{result.tokens_per_second:,.0f}"
    table.add_row("tokens/s", tokens, "-" if expected is None else f"{expected.tokens_per_second:,.0f}")
    if result.mfu is not None:
        expected_mfu = "-" if expected is None or expected.mfu is None else f"{expected.mfu:.1%}"
        table.add_row("MFU", f"{result.mfu:.1%}", expected_mfu)
    return table


def _word_where(measurement: Measurement, result: MeasurementResult) -> list[RenderableType]:
    environment = result.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    lines = [f"  {environment.device_name}, {packages}, Python {environment.python}"]
    if environment.driver is not None:
        lines.append(f"  driver {environment.driver}")
    readings = result.readings
    if readings.context_bytes is not None:
        lines.append(f"  context {format_bytes(readings.context_bytes)}")
    if readings.num_alloc_retries:
        lines.append(f"  the allocator released its cache and retried {readings.num_alloc_retries} times")
    if readings.clocks is not None and readings.clocks.throttle_reasons:
        lines.append(f"  lower clocks: {', '.join(readings.clocks.throttle_reasons)}")
    if result.snapshot_path is not None:
        lines.append(f"  allocator's history in {result.snapshot_path}")
    if measurement.warning is not None:
        lines.append(f"  {measurement.warning}")
    lines += [f"  - {note}" for note in result.notes]
    return [Text("Measured on", style="bold"), *lines]


def _median(samples: tuple[float, ...]) -> str:
    return format_seconds(median(samples)) if samples else "-"


def _shown(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _count(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes:,}"


def _difference(measured: int | None, expected: int | None) -> str:
    """Measured less expected, as a share of expected."""
    if measured is None or not expected:
        return "-"
    return f"{measured - expected:+,} ({(measured - expected) / expected:+.3%})"
