"""Classes of transformers compile again to exactly what direct traces hold."""

from collections import Counter

from benchmarks.architectures import FAMILIES, load_results, try_in_child
from tests.verify.report import Section

__all__ = ["verify_architectures"]

LEAST = 60
"""Classes that must be exact."""
_SECONDS = 12
"""Classes that took no longer are tried again, the quickest of each family first."""
_OF_A_FAMILY = 16


def verify_architectures() -> Section:
    """Trace, compile and hold classes that were exact against direct traces at points from which nothing was fitted."""
    known = load_results()
    exact = sorted(
        (row for row in known.values() if row["status"] == "exact"), key=lambda row: row["seconds"]
    )
    chosen = [
        row["architecture"]
        for family in FAMILIES
        for row in [row for row in exact if row["family"] == family and row["seconds"] <= _SECONDS][
            :_OF_A_FAMILY
        ]
    ]
    found = [try_in_child(name) for name in sorted(chosen)]
    failures = [f"{r['architecture']}: {r['reason']}" for r in found if r["status"] != "exact"]
    holding = [row for row in found if row["status"] == "exact"]
    if len(holding) < LEAST:
        failures.append(f"{len(holding)} classes are exact, at least {LEAST} must be")
    count = Counter(row["family"] for row in holding)
    points = sum(row["held_out"] for row in holding)
    return Section(
        title="Architectures of transformers compile exactly",
        summary=f"{len(holding)} classes of {len(count)} families at {points} held-out points of layers, batch and lengths: no "
        f"event and no byte differs; {len(failures)} failures. All {len(known)} classes tried, {len(exact)} of them exact: "
        "docs/architectures.md",
        columns=("class", "family", "layers", "period", "held-out points", "events", "bytes off"),
        rows=[
            (r["architecture"], r["family"], r["layers"], r["period"], r["held_out"], r["events"], 0)
            for r in holding
        ],
        failures=failures,
    )
