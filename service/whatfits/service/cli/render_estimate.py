"""An estimate in a terminal: the verdict, where every byte goes, where the time goes, and what it rests on."""

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from whatfits.estimator.specs import Estimate, MemoryEstimate, Verdict
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.service.cli.output import build_table, print_rendered
from whatfits.service.cli.render_explanation import build_live_table, build_step_table
from whatfits.service.cli.wording import (
    VERDICT_STYLES,
    word_interval,
    word_optimizer,
    word_placement,
    word_speed,
    word_training,
)

_VERDICTS = {Verdict.YES: "fits", Verdict.NO: "does not fit", Verdict.UNCERTAIN: "uncertain"}


def render_estimate(answer: Estimate) -> None:
    """Print the whole answer for one run."""
    parts: list[RenderableType] = [
        _word_verdict(answer),
        _word_run(answer),
        "",
        _build_breakdown_table(answer.memory),
        *_build_explanation(answer),
        "",
        _build_device_table(answer.memory),
        "",
        _build_peak_table(answer.memory),
        "",
        _build_time_table(answer),
        "",
        *_word_provenance(answer),
    ]
    print_rendered(*parts)


def _word_verdict(answer: Estimate) -> Text:
    memory = answer.memory
    verdict = Text(_VERDICTS[answer.fits], style=VERDICT_STYLES[answer.fits])
    probability = f" (probability {answer.fit_probability:.3f})"
    peak = f": {word_interval(memory.device_bytes)} GiB of {format_bytes(memory.usable_bytes)} usable"
    margin = format_bytes(abs(memory.headroom_bytes))
    return (
        verdict
        + probability
        + peak
        + (f", {margin} left" if memory.headroom_bytes >= 0 else f", {margin} too much")
    )


def _word_run(answer: Estimate) -> str:
    training, hardware = answer.spec.training, answer.spec.hardware
    model = answer.spec.model if isinstance(answer.spec.model, str) else "the given config"
    return (
        f"{model}, {word_training(training)}, {word_optimizer(training.optimizer)}, "
        f"micro-batch {training.micro_batch_size} x {training.seq_len} tokens, "
        f"checkpointing {training.checkpointing_policy or training.activation_checkpointing}, {word_placement(answer.spec.parallelism)}, "
        f"{hardware.num_gpus} x {hardware.gpu}"
    )


def _build_breakdown_table(memory: MemoryEstimate) -> Table:
    """Build the table of what is live at the peak; its lines sum to its total."""
    breakdown = memory.breakdown
    terms = ((name, getattr(breakdown, name)) for name in type(breakdown).model_fields)
    return _build_bytes_table(f"Live at the peak ({memory.peak_phase})", terms, breakdown.total)


def _build_device_table(memory: MemoryEstimate) -> Table:
    """Build the table of device memory by owner; its lines sum to the median."""
    breakdown = memory.device_breakdown
    terms = ((name, getattr(breakdown, name)) for name in type(breakdown).model_fields)
    return _build_bytes_table("On the device", terms, breakdown.total)


def _build_explanation(answer: Estimate) -> list[RenderableType]:
    """Build the tables of the explanation, if there is one."""
    if answer.explanation is None:
        return []
    return ["", build_live_table(answer.explanation), "", build_step_table(answer.explanation)]


def _build_bytes_table(title: str, terms: Iterable[tuple[str, int]], total: int) -> Table:
    table = build_table("", "bytes", "size", "share", right=("bytes", "size", "share"), title=title)
    for name, value in terms:
        if value:
            table.add_row(name.replace("_", " "), f"{value:,}", format_bytes(value), f"{value / total:.1%}")
    table.add_row("total", f"{total:,}", format_bytes(total), "", style="bold")
    return table


def _build_peak_table(memory: MemoryEstimate) -> Table:
    """Build the table of the three peaks, which are never the same thing."""
    table = build_table("", "bytes", "size", right=("bytes", "size"), title="Peaks")
    peaks = (
        ("requested (live tensors)", memory.peak_requested_bytes),
        ("allocated (max_memory_allocated)", memory.peak_allocated_bytes),
        ("reserved (max_memory_reserved)", memory.peak_reserved_bytes),
        ("reserved, at least needed", memory.required_reserved_bytes),
    )
    for name, value in peaks:
        table.add_row(
            name, "-" if value is None else f"{value:,}", "-" if value is None else format_bytes(value)
        )
    if memory.alloc_retries_expected:
        table.add_row(
            "the allocator has to release its cache and retry, which is slow", "", "", style="yellow"
        )
    return table


def _build_time_table(answer: Estimate) -> Table:
    time = answer.time
    table = build_table("", "value", right=("value",), title="One optimizer step")
    if time is None:
        table.add_row("step time", "not modelled for this architecture yet")
        return table
    seconds = time.step_time_seconds
    interval = f"{format_seconds(seconds.low)} to {format_seconds(seconds.high)}"
    table.add_row("step time (90%)", f"{format_seconds(seconds.median)} ({interval})")
    for name in type(time.parts).model_fields:
        value = getattr(time.parts, name)
        if value:
            table.add_row(f"  {name.replace('_', ' ')}", format_seconds(value))
    table.add_row("tokens/s, all GPUs (90%)", word_speed(time))
    table.add_row("tokens/s per GPU", f"{time.tokens_per_second_per_gpu:,.0f}")
    table.add_row("MFU", "not defined" if time.mfu is None else f"{time.mfu:.1%}")
    return table


def _word_provenance(answer: Estimate) -> list[RenderableType]:
    provenance = answer.provenance
    stack = ", ".join(f"{name} {version}" for name, version in provenance.stack.items())
    basis = f"basis {provenance.basis}, profile {provenance.profile} ({stack}), attention kernel {provenance.kernel}"
    assumptions = [f"  - {sentence}" for sentence in provenance.assumptions]
    return [Text("Rests on", style="bold"), f"  {basis}", *assumptions]
