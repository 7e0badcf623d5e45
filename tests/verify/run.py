"""The full acceptance runs: `make verify`. Prints and writes docs/verify.md; exit status 1 when a point fails.

`make verify ONLY=architectures,measured` runs some again and leaves what the report says of the others, each with its date.
"""

import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [
    str(ROOT),
    *(str(ROOT / name) for name in ("estimator", "optim_impls", "profiler", "service", "web")),
]

from tests.verify.accuracy import verify_recordings  # noqa: E402 (the path is set above)
from tests.verify.architectures import verify_architectures  # noqa: E402 (the same)
from tests.verify.composition import verify_composition  # noqa: E402 (the same)
from tests.verify.facts import (  # noqa: E402 (the same)
    verify_fsdp,
    verify_histories,
    verify_parameter_counts,
    verify_published,
)
from tests.verify.faults import verify_faults  # noqa: E402 (the same)
from tests.verify.measured import verify_measured  # noqa: E402 (the same)
from tests.verify.optimizers import verify_training  # noqa: E402 (the same)
from tests.verify.points import verify_points, verify_second_stack  # noqa: E402 (the same)
from tests.verify.report import Section, render  # noqa: E402 (the same)

POINTS: tuple[Callable[[], Section], ...] = (
    verify_points,
    verify_second_stack,
    verify_composition,
    verify_architectures,
    verify_histories,
    verify_published,
    verify_recordings,
    verify_parameter_counts,
    verify_fsdp,
    verify_training,
    verify_measured,
    verify_faults,
)


def main(only: str = "") -> int:
    """Run the points, or some of them; the report is written after each."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    report = ROOT / "docs/verify.md"
    previous, sections = report.read_text() if only else "", list[Section]()
    for verify in _chosen(only):
        started = time.perf_counter()
        found = _run(verify)
        seconds = time.perf_counter() - started
        sections.append(replace(found, seconds=seconds))
        print(
            f"{found.result}  {found.title}: {found.summary} ({seconds:.0f} s)",
            file=sys.stderr,
        )
        report.write_text(render(sections, previous))
    print(report.read_text())
    return (
        0
        if all(section.holds or not (section.is_compared or section.failures) for section in sections)
        else 1
    )


def _chosen(only: str) -> list[Callable[[], Section]]:
    names = {verify.__name__.removeprefix("verify_"): verify for verify in POINTS}
    asked = only.split(",") if only else list(names)
    unknown = [name for name in asked if name not in names]
    if unknown:
        sys.exit(f"ONLY: {', '.join(unknown)} is no point of make verify; accepted: {', '.join(names)}")
    return [names[name] for name in asked]


def _run(verify: Callable[[], Section]) -> Section:
    """A point; one that raises has failed, and the others still run."""
    try:
        return verify()
    except Exception as error:  # noqa: BLE001 (whatever it is, the report says it)
        reason = f"{type(error).__name__}: {error}"
        return Section(title=verify.__name__, summary=reason, columns=(), rows=(), failures=(reason,))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
