"""The full acceptance runs: `make verify`. Prints and writes docs/verify.md; exit status 1 when a point fails."""

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


def main() -> int:
    """Run every point, write the report."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sections = []
    for verify in POINTS:
        started = time.perf_counter()
        found = verify()
        seconds = time.perf_counter() - started
        sections.append(replace(found, seconds=seconds))
        print(
            f"{found.result}  {found.title}: {found.summary} ({seconds:.0f} s)",
            file=sys.stderr,
        )
    text = render(sections)
    (ROOT / "docs/verify.md").write_text(text)
    print(text)
    return (
        0
        if all(section.holds or not (section.is_compared or section.failures) for section in sections)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
