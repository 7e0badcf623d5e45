"""The replay of the caching allocator against every history recorded on a GPU of our own, each from an empty allocator.

    python tests/golden/gpu_recordings.py

Compared are the place of every allocation, the place and size of every new segment or mapped range, and the ordered list of
every release. Exit status 1 when anything differs.
"""

import sys
from collections import Counter
from pathlib import Path

from whatfits.profiler.measure.recordings import read_recording
from whatfits.profiler.measure.replay_check import compare_placements

RECORDINGS = Path(__file__).parents[2] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24"
WITH_HISTORY = ("steps", "older", "tied", "published", "expandable", "parallel", "ops")


def compare_recording(part: str, *, every: int = 1) -> Counter[str]:
    """Sum of the comparisons of a part's cases, or of each `every`-th one."""
    total: Counter[str] = Counter()
    for number, case in enumerate(read_recording(RECORDINGS / f"{part}.jsonl.gz")):
        if number % every == 0 and case.trace is not None and case.allocated_before == 0:
            total["cases"] += 1
            total.update(compare_placements(case.trace))
    return total


def main() -> int:
    """Print a line per part."""
    exact = True
    for part in WITH_HISTORY:
        total = compare_recording(part)
        counts = (
            f"{total[f'{what}_exact']} of {total[what]} {what}"
            for what in ("placements", "segments", "releases")
        )
        print(f"{part}: {total['cases']} cases, {', '.join(counts)}")
        exact &= all(total[what] == total[f"{what}_exact"] for what in ("placements", "segments", "releases"))
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
