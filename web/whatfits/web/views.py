"""From the API's answers to what the templates show: words and texts only, so that templates hold no arithmetic."""

import json
from collections.abc import Iterable, Mapping, Sequence

from whatfits.estimator.units import format_bytes, format_count, format_seconds
from whatfits.web.answers import (
    Candidate,
    Estimate,
    Plan,
    Problem,
)
from whatfits.web.figures import (
    MemoryBar,
    build_memory_figure,
    build_segment_bytes,
    segments_in_use,
)
from whatfits.web.forms import (
    PlanForm,
    assign_problems,
    build_cli_command,
    build_plan_request,
)
from whatfits.web.view_models import (
    CandidateRow,
    Catalog,
    Choice,
    PlanAnswer,
    PlanPage,
    RejectionRow,
    SegmentTable,
)
from whatfits.web.wording import (
    word_batch_note,
    word_bytes_interval,
    word_optimizer_note,
    word_placement,
    word_placement_note,
    word_rank,
    word_speed_interval,
)

__all__ = ["build_plan_page"]

_OBJECTIVES = {"throughput": "Fastest first", "memory": "Least memory first"}
_PRECISIONS = {
    "bf16": "bf16",
    "bf16_mixed": "bf16 mixed (autocast over fp32 weights)",
    "bf16_master": "bf16 with fp32 master weights",
    "fp32": "fp32",
    "fp16_mixed": "fp16 mixed (autocast and loss scaling)",
}
_BEST_WORDS = {"throughput": "fastest", "memory": "least memory"}
_FITS_WORDS = {"yes": "fits", "no": "does not fit", "uncertain": "uncertain"}


def build_plan_page(form: PlanForm, catalog: Catalog, outcome: Plan | Problem) -> PlanPage:
    """The page for a question and what came of it."""
    problem = outcome if isinstance(outcome, Problem) else None
    titles = {entry.name: entry.title for entry in catalog.optimizers}
    return PlanPage(
        form=form,
        models=tuple(
            Choice(value=model.name, label=f"{format_count(model.num_parameters)} parameters")
            for model in catalog.models
        ),
        gpus=tuple(
            Choice(value=f"{count}{gpu.id}", label=gpu.name) for gpu in catalog.gpus for count in ("", "8x")
        ),
        optimizers=_choices(titles, form.optimizers),
        precisions=_choices(_PRECISIONS, (form.precision,)),
        objectives=_choices(_OBJECTIVES, (form.objective,)),
        problems=assign_problems(problem),
        problem_title=problem.title if problem else "",
        cli_command=build_cli_command(form),
        request_json=json.dumps(build_plan_request(form), indent=2),
        answer=None if isinstance(outcome, Problem) else _build_answer(form, catalog, outcome),
    )


def _choices(labels: Mapping[str, str], chosen: Iterable[str]) -> tuple[Choice, ...]:
    """The options of a field; what was asked for is one of them even where the page does not know it."""
    asked = tuple(chosen)
    known = {**labels, **{value: value for value in asked if value not in labels}}
    return tuple(Choice(value=value, label=label, chosen=value in asked) for value, label in known.items())


def _build_answer(form: PlanForm, catalog: Catalog, plan: Plan) -> PlanAnswer:
    rows = tuple(
        _candidate_row(number, candidate, catalog)
        for number, candidate in enumerate(plan.candidates, start=1)
    )
    bars = [
        _memory_bar(row, candidate.estimate) for row, candidate in zip(rows, plan.candidates, strict=True)
    ]
    usable = plan.candidates[0].estimate.memory.usable_bytes if plan.candidates else 0
    figure = build_memory_figure(bars, usable_bytes=usable) if bars else {}
    return PlanAnswer(
        headline=_headline(form, catalog, plan, rows),
        best=_best_words(rows),
        searched=f"{plan.searched:,} configurations searched in {format_seconds(plan.elapsed_seconds)}.",
        usable=format_bytes(usable),
        candidates=rows,
        rejections=tuple(
            RejectionRow(
                optimizer=catalog.title_of(rejection.optimizer),
                rank=word_rank(rejection.rank),
                placement=rejection.placement,
                why=rejection.why,
                change=rejection.smallest_change_that_fits or "none found",
            )
            for rejection in plan.rejected
        ),
        figure_json=json.dumps(figure),
        legend=segments_in_use(bars),
        segments=_segment_table(bars),
        assumptions=_collect_assumptions(plan),
    )


def _headline(form: PlanForm, catalog: Catalog, plan: Plan, rows: Sequence[CandidateRow]) -> str:
    """The verdict in one sentence."""
    question = f"{form.model} on {_gpu_words(form, catalog, plan)}"
    fitting = len({_choice_key(candidate) for candidate in plan.candidates})
    tried = fitting + len(plan.rejected)
    if not rows:
        return f"{question}: none of {tried} choices fits."
    unsure = fitting - len({_choice_key(one) for one in plan.candidates if one.estimate.fits == "yes"})
    doubt = f" ({unsure} of them perhaps)" if unsure else ""
    first = rows[0]
    rank = f"rank {first.rank}" if first.rank else ""
    best = " ".join(part for part in (first.optimizer, rank, first.optimizer_note) if part)
    word = _BEST_WORDS.get(form.objective, "first")
    return f"{question}: {fitting} of {tried} choices fit{doubt}; {word}: {best}, {first.placement}."


def _choice_key(candidate: Candidate) -> tuple[object, ...]:
    """What tells choices apart: the optimizer's setting and the placement. Batch and checkpointing vary within one."""
    training = candidate.spec.training
    return training.optimizer, training.layerwise_update, candidate.spec.parallelism


def _gpu_words(form: PlanForm, catalog: Catalog, plan: Plan) -> str:
    if not plan.candidates:
        return form.gpus
    hardware = plan.candidates[0].spec.hardware
    name = next((gpu.name for gpu in catalog.gpus if gpu.id == hardware.gpu), hardware.gpu)
    return f"{hardware.num_gpus} × {name}"


def _best_words(rows: Sequence[CandidateRow]) -> str:
    if not rows:
        return "The table below says why, and what the smallest change is that fits."
    first = rows[0]
    return (
        f"The first choice trains {first.speed} tokens/s ({first.speed_interval}), takes {first.peak} "
        f"({first.peak_interval}) on each GPU and leaves {first.headroom}."
    )


def _candidate_row(number: int, candidate: Candidate, catalog: Catalog) -> CandidateRow:
    training, estimate = candidate.spec.training, candidate.estimate
    memory, device = estimate.memory, estimate.memory.device_bytes
    return CandidateRow(
        number=number,
        optimizer=catalog.title_of(training.optimizer.name),
        optimizer_note=word_optimizer_note(training),
        rank=word_rank(training.optimizer.rank),
        placement=word_placement(candidate.spec.parallelism),
        placement_note=word_placement_note(candidate.spec.parallelism),
        batch=str(training.micro_batch_size),
        batch_note=word_batch_note(training),
        checkpointing=training.activation_checkpointing,
        peak=format_bytes(device.median),
        peak_interval=word_bytes_interval(device.low, device.high),
        peak_phase=memory.peak_phase.replace("_", " "),
        headroom=format_bytes(memory.headroom_bytes),
        fits=estimate.fits,
        fits_words=_FITS_WORDS.get(estimate.fits, estimate.fits),
        speed=f"{estimate.time.tokens_per_second:,.0f}",
        speed_interval=word_speed_interval(estimate),
        step_time=format_seconds(estimate.time.step_time_seconds.median),
        basis=estimate.provenance.basis,
        pareto=candidate.pareto,
        reasons=candidate.reasons,
    )


def _memory_bar(row: CandidateRow, estimate: Estimate) -> MemoryBar:
    memory = estimate.memory
    return MemoryBar(
        label=f"{row.number}. {row.optimizer}" + (f" ({row.rank})" if row.rank else ""),
        segments=build_segment_bytes(memory.breakdown, memory.device_breakdown),
        low=memory.device_bytes.low,
        median=memory.device_bytes.median,
        high=memory.device_bytes.high,
    )


def _segment_table(bars: Sequence[MemoryBar]) -> SegmentTable:
    segments = segments_in_use(bars)
    return SegmentTable(
        columns=(*(segment.label for segment in segments), "Total", "90% interval"),
        rows=tuple(
            (
                bar.label,
                (
                    *(format_bytes(bar.segments.get(segment.key, 0)) for segment in segments),
                    format_bytes(bar.median),
                    word_bytes_interval(bar.low, bar.high),
                ),
            )
            for bar in bars
        ),
    )


def _collect_assumptions(plan: Plan) -> tuple[str, ...]:
    """Each assumption once, those of the plan first."""
    by_candidate: Iterable[str] = (
        sentence for candidate in plan.candidates for sentence in candidate.estimate.provenance.assumptions
    )
    return tuple(dict.fromkeys((*plan.assumptions, *by_candidate)))
