"""What the templates show: words, texts and flags, ready to print."""

from dataclasses import dataclass

from whatfits.web.answers import Gpu, Model, Optimizer
from whatfits.web.figures import Segment
from whatfits.web.forms import FormProblems, PlanForm

__all__ = [
    "CandidateRow",
    "Catalog",
    "Choice",
    "PlanAnswer",
    "PlanPage",
    "RejectionRow",
    "SegmentTable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What the form offers."""

    models: tuple[Model, ...]
    gpus: tuple[Gpu, ...]
    optimizers: tuple[Optimizer, ...]

    def title_of(self, optimizer: str) -> str:
        return next((entry.title for entry in self.optimizers if entry.name == optimizer), optimizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One option of a field."""

    value: str
    label: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One row of the ranked table."""

    number: int
    optimizer: str
    optimizer_note: str
    rank: str
    placement: str
    placement_note: str
    batch: str
    batch_note: str
    checkpointing: str
    peak: str
    peak_interval: str
    peak_phase: str
    headroom: str
    fits: str
    fits_words: str
    speed: str
    speed_interval: str
    step_time: str
    basis: str
    pareto: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionRow:
    optimizer: str
    rank: str
    placement: str
    why: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTable:
    """The chart's data as a table: a row per candidate, a column per segment, the total and its interval last."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A plan in words, tables and a figure."""

    headline: str
    best: str
    searched: str
    usable: str
    candidates: tuple[CandidateRow, ...]
    rejections: tuple[RejectionRow, ...]
    figure_json: str
    legend: tuple[Segment, ...]
    segments: SegmentTable
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPage:
    """Everything the page shows."""

    form: PlanForm
    models: tuple[Choice, ...]
    gpus: tuple[Choice, ...]
    optimizers: tuple[Choice, ...]
    precisions: tuple[Choice, ...]
    objectives: tuple[Choice, ...]
    problems: FormProblems
    problem_title: str
    cli_command: str
    request_json: str
    answer: PlanAnswer | None
