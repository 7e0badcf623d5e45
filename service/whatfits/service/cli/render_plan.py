"""A plan as tables in a terminal: what fits, what does not and why, and what was assumed."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from whatfits.estimator.specs import Plan, Rejection
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.service.cli.output import build_table, print_rendered
from whatfits.service.cli.wording import (
    VERDICT_STYLES,
    word_interval,
    word_optimizer,
    word_placement,
    word_speed,
)

_NUMBERS = ("#", "micro-batch", "peak GiB (90%)", "tokens/s (90%)")
_COLUMNS = ("#", "", "optimizer", "placement", "micro-batch", "checkpointing", "peak GiB (90%)", "fits", "tokens/s (90%)", "basis")  # fmt: skip


def render_plan(answer: Plan) -> None:
    """Print the ranked candidates, the rejected with reason and remedy, and the assumptions."""
    parts: list[RenderableType] = [_word_summary(answer)]
    if answer.candidates:
        parts += [
            "",
            _build_candidate_table(answer),
            "* on the Pareto front: no other is both faster and smaller",
        ]
    if answer.rejected:
        parts += ["", Text("Does not fit", style="bold"), *map(_word_rejection, answer.rejected)]
    if answer.assumptions:
        parts += [
            "",
            Text("Assumptions", style="bold"),
            *(f"  - {sentence}" for sentence in answer.assumptions),
        ]
    print_rendered(*parts)


def _word_summary(answer: Plan) -> Text:
    searched = f"{answer.searched:,} configurations in {format_seconds(answer.elapsed_seconds)}"
    if not answer.candidates:
        return Text(f"Nothing fits; searched {searched}.", style="bold red")
    first = answer.candidates[0]
    hardware = first.spec.hardware
    usable = format_bytes(first.estimate.memory.usable_bytes)
    seq_len = first.spec.training.seq_len
    question = f"{hardware.num_gpus} x {hardware.gpu}, {usable} usable each, {seq_len} tokens a sequence"
    return Text(f"{question}; searched {searched}.", style="bold")


def _build_candidate_table(answer: Plan) -> Table:
    table = build_table(*_COLUMNS, right=_NUMBERS)
    for place, candidate in enumerate(answer.candidates, start=1):
        training, estimate = candidate.spec.training, candidate.estimate
        optimizer = word_optimizer(training.optimizer)
        table.add_row(
            str(place),
            "*" if candidate.pareto else "",
            f"{optimizer}, layer-wise" if training.layerwise_update else optimizer,
            word_placement(candidate.spec.parallelism),
            _word_batch(training.micro_batch_size, training.grad_accum_steps),
            str(training.activation_checkpointing),
            word_interval(estimate.memory.device_bytes),
            Text(str(estimate.fits), style=VERDICT_STYLES[estimate.fits]),
            word_speed(estimate.time),
            str(estimate.provenance.basis),
        )
    return table


def _word_batch(micro_batch_size: int, grad_accum_steps: int) -> str:
    return str(micro_batch_size) if grad_accum_steps == 1 else f"{micro_batch_size} x {grad_accum_steps}"


def _word_rejection(rejection: Rejection) -> str:
    rank = "" if rejection.rank is None else f" rank {rejection.rank}"
    remedy = (
        "" if rejection.smallest_change_that_fits is None else f" Fits: {rejection.smallest_change_that_fits}"
    )
    return f"  - {rejection.optimizer}{rank}, {rejection.placement}: {rejection.why}{remedy}"
