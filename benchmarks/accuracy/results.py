"""What became of each row, and the figures over many of them."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "TODAYS_SOFTMAX",
    "TRAINER_DEVICE",
    "Comparison",
    "Distribution",
    "NotRun",
    "distribution",
    "reasons",
    "to_json",
]

TRAINER_DEVICE = "device total"
"""What the device holds after training, of the rows of transformers' Trainer."""
TODAYS_SOFTMAX = "device total, today's softmax"
"""The same, estimated without the rule that was found from these rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of one row beside the estimate of it."""

    row: str
    source: str
    quantity: str
    measured: float
    estimate: float
    low: float | None = None
    high: float | None = None
    """The 90% interval, where the estimate has one for this quantity."""
    verdict: str | None = None
    how: str = ""
    post_hoc: bool = False
    """Whether a rule was found from this row's own residual."""
    rounding: float = 0.0
    """Half the last printed digit, relative."""

    @property
    def error(self) -> float:
        """Relative; negative is an under-estimate."""
        return self.estimate / self.measured - 1

    @property
    def covered(self) -> bool | None:
        """Whether the interval holds the measured value."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A row that was not compared, and why."""

    row: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Relative errors of many comparisons."""

    number: int
    mean: float
    mean_absolute: float
    median_absolute: float
    lowest: float
    highest: float
    under: int
    """How many are below the measured value by more than one part in a thousand."""


UNDER = -0.001


def distribution(rows: Sequence[Comparison]) -> Distribution:
    """The figures of some rows, of which there is at least one."""
    errors = [row.error for row in rows]
    return Distribution(
        number=len(errors),
        mean=statistics.fmean(errors),
        mean_absolute=statistics.fmean(abs(e) for e in errors),
        median_absolute=statistics.median(abs(e) for e in errors),
        lowest=min(errors),
        highest=max(errors),
        under=sum(e < UNDER for e in errors),
    )


def reasons(rows: Iterable[NotRun]) -> list[tuple[str, str, int]]:
    """Source, reason and number of rows, the most frequent first."""
    counted = Counter((row.source, row.reason) for row in rows)
    return [(source, reason, number) for (source, reason), number in counted.most_common()]


def to_json(rows: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Rows as data, with their errors; what is at its default stays out."""
    return [
        {**{k: v for k, v in asdict(row).items() if v not in (None, False, "")}, "error": round(row.error, 6)}
        for row in rows
    ]
