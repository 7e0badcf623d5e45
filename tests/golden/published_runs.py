"""Published memory figures and what `estimate_run` says to them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.specs import Estimate, RunSpec
from whatfits.estimator.units import GB, GIB

__all__ = ["PublishedCase", "load_cases"]

DATA = Path(__file__).with_name("published_runs.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCase:
    """One row of the data file."""

    id: str
    source: str
    published_gb: tuple[float, ...]
    bounds_gb: tuple[float, float] | None
    verdicts: tuple[str, ...]
    headroom_below_gib: float | None
    run: dict[str, Any]  # JSON

    def estimate(self) -> Estimate:
        """Our answer."""
        return estimate_run(RunSpec.model_validate(self.run))

    def failures(self, answer: Estimate) -> list[str]:
        """Bounds that the answer breaks."""
        found = []
        allocated = allocated_gb(answer)
        if self.bounds_gb is not None and not self.bounds_gb[0] <= allocated <= self.bounds_gb[1]:
            found.append(f"{allocated:.2f} GB is outside {self.bounds_gb}")
        if answer.fits not in self.verdicts:
            found.append(f"{answer.fits} is none of {self.verdicts}")
        headroom = answer.memory.headroom_bytes / GIB
        if self.headroom_below_gib is not None and headroom >= self.headroom_below_gib:
            found.append(f"headroom {headroom:.2f} GiB is not below {self.headroom_below_gib}")
        return found


def allocated_gb(answer: Estimate) -> float:
    """Peak allocated, requested where no replay ran, in decimal GB."""
    memory = answer.memory
    return (memory.peak_allocated_bytes or memory.peak_requested_bytes) / GB


def load_cases() -> tuple[PublishedCase, ...]:
    """All cases."""
    rows = json.loads(DATA.read_text())["cases"]
    return tuple(
        PublishedCase(
            id=row["id"],
            source=row["source"],
            published_gb=tuple(row["published_gb"]),
            bounds_gb=tuple(row["bounds_gb"]) if "bounds_gb" in row else None,
            verdicts=tuple(row["verdicts"]),
            headroom_below_gib=row.get("headroom_below_gib"),
            run=row["run"],
        )
        for row in rows
    )
