"""What the templates of measurements show: words and texts, ready to print."""

from dataclasses import dataclass

from whatfits.web.forms import FormProblems
from whatfits.web.view_models import Choice

__all__ = [
    "AgentRow",
    "Fact",
    "FilterForm",
    "MeasurementDetail",
    "MeasurementRow",
    "MeasurementsPage",
    "Table",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterForm:
    """The filters as text, exactly as given."""

    model: str = ""
    optimizer: str = ""
    status: str = ""
    device_name: str = ""
    campaign: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRow:
    """One measurement in the list."""

    href: str
    run: str
    run_note: str
    device: str
    status: str
    status_class: str
    status_note: str
    peak: str
    peak_note: str
    step_time: str
    speed: str
    created: str
    events: str
    """Address of its events while it runs; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    name: str
    device: str
    queue: str
    state: str
    state_class: str
    heard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementsPage:
    """The list, its filters and who measures."""

    form: FilterForm
    statuses: tuple[Choice, ...]
    problems: FormProblems
    rows: tuple[MeasurementRow, ...]
    agents: tuple[AgentRow, ...]
    next_href: str
    unfinished: bool
    """Whether a row will still change, so that the page should be looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    label: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A heading, columns, and rows that begin with their name."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementDetail:
    """Everything about one measurement."""

    id: str
    row: MeasurementRow
    sentence: str
    notes: tuple[str, ...]
    facts: tuple[Fact, ...]
    tables: tuple[Table, ...]
    unfinished: bool
