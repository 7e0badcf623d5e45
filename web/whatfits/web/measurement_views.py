"""From the API's measurements and agents to what their templates show."""

from collections.abc import Mapping, Sequence
from statistics import median
from urllib.parse import urlencode

from whatfits.estimator.units import format_bytes, format_count, format_seconds
from whatfits.web.answers import Problem
from whatfits.web.forms import assign_problems
from whatfits.web.measurement_answers import (
    Agent,
    Comparison,
    Difference,
    Measurement,
    MeasurementList,
    Result,
    Times,
)
from whatfits.web.measurement_models import (
    AgentRow,
    Fact,
    FilterForm,
    MeasurementDetail,
    MeasurementRow,
    MeasurementsPage,
    Table,
)
from whatfits.web.view_models import Choice
from whatfits.web.wording import word_rank

__all__ = ["build_measurement_page", "build_measurements_page", "filters_of"]

_STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")
_STATUS_CLASSES = {"succeeded": "yes", "failed": "no", "running": "uncertain"}
_UNFINISHED = ("queued", "running")
_OUT_OF_MEMORY = "out_of_memory"
_QUANTITIES = {
    "peak_requested_bytes": "Peak requested",
    "peak_allocated_bytes": "Peak allocated",
    "peak_reserved_bytes": "Peak reserved",
    "device_used_bytes": "Device in use",
}
_PHASES = ("forward", "loss", "backward", "optimizer_step", "step", "refresh_step")


def filters_of(form: FilterForm) -> dict[str, str]:
    """The filters that say something, as the API takes them."""
    given = {name: getattr(form, name) for name in FilterForm.__dataclass_fields__}
    return {name: value for name, value in given.items() if value}


def build_measurements_page(
    form: FilterForm, outcome: MeasurementList | Problem, agents: Sequence[Agent]
) -> MeasurementsPage:
    """The list that the filters leave, or what is wrong with them."""
    problem = outcome if isinstance(outcome, Problem) else None
    items = () if isinstance(outcome, Problem) else outcome.items
    cursor = None if isinstance(outcome, Problem) else outcome.next_cursor
    following = "/measurements?" + urlencode({**filters_of(form), "cursor": cursor}) if cursor else ""
    return MeasurementsPage(
        form=form,
        statuses=tuple(
            Choice(value=value, label=value or "any", chosen=value == form.status)
            for value in dict.fromkeys(("", *_STATUSES, form.status))
        ),
        problems=assign_problems(problem),
        rows=tuple(_row(item) for item in items),
        agents=tuple(_agent_row(agent) for agent in agents),
        next_href=following,
        unfinished=any(item.status in _UNFINISHED for item in items),
    )


def build_measurement_page(measurement: Measurement) -> MeasurementDetail:
    """One measurement with every figure of it."""
    result = measurement.result
    tables = () if result is None else _tables(measurement, result)
    return MeasurementDetail(
        id=measurement.id,
        row=_row(measurement),
        sentence=_sentence(measurement),
        notes=(
            *([measurement.warning] if measurement.warning else []),
            *(result.notes if result else ()),
        ),
        facts=_facts(measurement),
        tables=tables,
        unfinished=measurement.status in _UNFINISHED,
    )


def _row(measurement: Measurement) -> MeasurementRow:
    training, result = measurement.request.spec.training, measurement.result
    optimizer = training.optimizer
    rank = f" rank {word_rank(optimizer.rank)}" if optimizer.rank is not None else ""
    out_of_memory = result is not None and result.outcome == _OUT_OF_MEMORY
    return MeasurementRow(
        href=f"/measurements/{measurement.id}",
        run=f"{_model_name(measurement)}, {optimizer.name}{rank}",
        run_note=(
            f"{training.micro_batch_size} × {training.seq_len:,} tokens"
            + (f", {training.grad_accum_steps} accumulated" if training.grad_accum_steps > 1 else "")
            + f", {training.precision}, checkpointing {training.activation_checkpointing}"
        ),
        device=result.environment.device_name if result else measurement.queue,
        status="out of memory" if out_of_memory else measurement.status,
        status_class="no" if out_of_memory else _STATUS_CLASSES.get(measurement.status, "outline"),
        status_note=measurement.failure.kind.replace("_", " ") if measurement.failure else "",
        peak=format_bytes(_peak(result)) if result else "–",
        peak_note=_peak_note(result, measurement.comparison) if result else "",
        step_time=format_seconds(median(result.times.step)) if result and result.times.step else "–",
        speed=f"{result.tokens_per_second:,.0f}" if result and result.tokens_per_second else "–",
        created=_minute(measurement.created_at),
        events=f"/api/v1/measurements/{measurement.id}/events" if measurement.status in _UNFINISHED else "",
    )


def _model_name(measurement: Measurement) -> str:
    model = measurement.request.spec.model
    if isinstance(model, str):
        return model
    size = f" of {format_count(measurement.result.num_parameters)}" if measurement.result else ""
    return f"{model.get('model_type', 'config')}{size}"


def _peak(result: Result) -> int:
    """What the device tells of blocks in use, else live tensors."""
    return result.peak_requested_bytes if result.peak_allocated_bytes is None else result.peak_allocated_bytes


def _peak_note(result: Result, comparison: Comparison | None) -> str:
    """How far the peak is from what was expected of this very device."""
    if result.traced_peak_requested_bytes is not None:
        difference = result.peak_requested_bytes - result.traced_peak_requested_bytes
        return "as traced" if difference == 0 else f"{difference:+,} B from the trace"
    if comparison is None or not comparison.same_device or comparison.peak_allocated_bytes is None:
        return ""
    return f"{_percent(comparison.peak_allocated_bytes)} of the estimate"


def _percent(difference: Difference) -> str:
    if difference.difference_fraction is None:
        return "–"
    return f"{round(100 * difference.difference_fraction, 2) + 0.0:+.2f}%"


def _minute(time: str) -> str:
    """A time of the API to the minute, in UTC: 2026-11-24 10:05."""
    return time[:16].replace("T", " ")


def _agent_row(agent: Agent) -> AgentRow:
    return AgentRow(
        name=f"{agent.host} {agent.slot}",
        device=agent.device_name,
        queue=agent.queue,
        state="live" if agent.live else "silent",
        state_class="yes" if agent.live else "no",
        heard=agent.heartbeat_at[:19].replace("T", " "),
    )


def _sentence(measurement: Measurement) -> str:
    """What came of it."""
    result, failure = measurement.result, measurement.failure
    if failure is not None:
        return f"It failed ({failure.kind.replace('_', ' ')}): {failure.message}"
    if result is None:
        waiting = {
            "queued": "It waits for a device.",
            "running": f"Agent {measurement.agent} runs it, attempt {measurement.attempts}.",
        }
        return waiting.get(measurement.status, "It was cancelled.")
    if result.outcome == _OUT_OF_MEMORY:
        phase = (result.reached_phase or "the build of the model").replace("_", " ")
        return f"Memory ran out in {phase} after {result.reached_step} steps."
    return f"All {result.reached_step} steps ran."


def _facts(measurement: Measurement) -> tuple[Fact, ...]:
    spec, result = measurement.request.spec, measurement.result
    facts = {
        "Queue": measurement.queue,
        "Hardware of the run": f"{spec.hardware.num_gpus} × {spec.hardware.gpu}",
        "Campaign": measurement.campaign or "",
        "Asked": f"{_minute(measurement.created_at)} UTC",
        "Ended": f"{_minute(measurement.finished_at)} UTC" if measurement.finished_at else "",
        "Source": measurement.source,
        "Attempts": str(measurement.attempts) if measurement.attempts else "",
    }
    if result is not None:
        environment = result.environment
        facts |= {
            "Model": f"{format_count(result.num_parameters)} parameters, {result.num_layers} layers",
            "MFU": f"{100 * result.mfu:.1f}%" if result.mfu is not None else "",
            "Device": environment.device_name,
            "GPU ids": ", ".join(environment.gpu_uuids),
            "Driver": environment.driver or "",
            "Packages": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
            "Python": f"{environment.python} on {environment.platform}",
            "Commit": environment.commit or "",
        }
    return tuple(Fact(label=label, value=value) for label, value in facts.items() if value)


def _tables(measurement: Measurement, result: Result) -> tuple[Table, ...]:
    compared = _comparison_table(measurement)
    return (*([compared] if compared else []), _peaks_table(result), _times_table(result.times))


def _comparison_table(measurement: Measurement) -> Table | None:
    comparison = measurement.comparison
    if comparison is None:
        return None
    found: Mapping[str, Difference | None] = {
        label: getattr(comparison, name) for name, label in _QUANTITIES.items()
    }
    rows = [
        (label, (format_bytes(one.measured), format_bytes(one.estimated), _percent(one)))
        for label, one in found.items()
        if one is not None
    ]
    step = comparison.step_time_seconds
    if step is not None:
        rows.append(
            ("Step time", (format_seconds(step.measured), format_seconds(step.estimated), _percent(step)))
        )
    note = "" if comparison.same_device else "A CPU measured; the estimate is of the GPU that the run names."
    return Table(
        title="Measured beside estimated",
        note=note,
        columns=("", "Measured", "Estimated", "Difference"),
        rows=tuple(rows),
    )


def _peaks_table(result: Result) -> Table:
    def shown(nbytes: int | None) -> str:
        return "–" if nbytes is None else format_bytes(nbytes)

    return Table(
        title="Peaks by kind of step and phase",
        note="",
        columns=("Step, phase", "Requested", "Allocated", "Active", "Reserved"),
        rows=tuple(
            (
                f"{peak.step}, {peak.phase.replace('_', ' ')}",
                (
                    shown(peak.peak_requested_bytes),
                    shown(peak.peak_allocated_bytes),
                    shown(peak.peak_active_bytes),
                    shown(peak.peak_reserved_bytes),
                ),
            )
            for peak in result.peaks
        ),
    )


def _times_table(times: Times) -> Table:
    rows = []
    for phase in _PHASES:
        samples: tuple[float, ...] = getattr(times, phase)
        if samples:
            figures = (
                format_seconds(median(samples)),
                format_seconds(min(samples)),
                format_seconds(max(samples)),
            )
            every = " ".join(format_seconds(sample) for sample in samples)
            rows.append((phase.replace("_", " "), (*figures, every)))
    return Table(
        title="Times",
        note="",
        columns=("Part", "Median", "Shortest", "Longest", "Every sample, in order"),
        rows=tuple(rows),
    )
