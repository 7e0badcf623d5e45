"""Recorded training runs of an H100 against the estimates of the shipped profiles."""

from benchmarks.accuracy.compare import compare_recordings
from benchmarks.accuracy.evaluate import Interpreters
from benchmarks.accuracy.results import Comparison, NotRun, distribution
from tests.verify.report import Section

__all__ = ["verify_recordings"]

MEAN, WORST = 0.001, 0.005
"""Bounds on the relative error of peak allocated bytes."""


def verify_recordings() -> Section:
    """Peak allocated bytes of every run of the `speed` recordings that a shipped profile answers."""
    outcome = compare_recordings(Interpreters([]), ("speed",))
    rows = [r for r in outcome if isinstance(r, Comparison) and r.quantity == "peak_allocated"]
    failures = [f"{r.row}: {r.error:+.3%}" for r in rows if abs(r.error) > WORST]
    found = distribution(rows)
    if found.mean_absolute > MEAN:
        failures.append(f"mean {found.mean_absolute:.3%} is above {MEAN:.1%}")
    not_run = sum(isinstance(r, NotRun) for r in outcome)
    return Section(
        title="Recorded runs on an H100",
        summary=f"{found.number} runs, peak allocated off by {found.mean_absolute:.3%} on average, {found.lowest:+.3%} to "
        f"{found.highest:+.3%}; {not_run} not answered or not modelled (docs/accuracy.md)",
        columns=("run", "measured", "estimate", "error"),
        rows=[(r.row, int(r.measured), int(r.estimate), f"{r.error:+.3%}") for r in rows],
        failures=failures,
    )
