"""Compare every eligible row with the product: `make accuracy`; writes docs/accuracy.md and benchmarks/accuracy/results.json.

`--stack-python` names interpreters of environments with other library versions: rows that ran with those are traced in
them. `--litgpt` names a checkout of lit-gpt at the commit of its resource tables.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("estimator", "optim_impls", "profiler"))]

from benchmarks.accuracy.compare import compare_caps, compare_published, compare_recordings  # noqa: E402 (the path is set above)
from benchmarks.accuracy.evaluate import Interpreters  # noqa: E402 (the same)
from benchmarks.accuracy.recordings import PARTS  # noqa: E402 (the same)
from benchmarks.accuracy.report import render  # noqa: E402 (the same)
from benchmarks.accuracy.results import Comparison, NotRun, to_json  # noqa: E402 (the same)

HERE = Path(__file__).parent
PEERS = ROOT / "benchmarks" / "peers.json"


def main(arguments: list[str] | None = None) -> int:
    """Compare, print the table, write both files."""
    parser = argparse.ArgumentParser(description="compare the product with published and recorded runs")
    parser.add_argument("--litgpt", type=Path, help="checkout of lit-gpt")
    parser.add_argument("--stack-python", default="", help=f"interpreters, separated by {os.pathsep!r}")
    parser.add_argument("--parts", default=",".join(PARTS), help="recordings to compare")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    pythons = [x for x in options.stack_python.split(os.pathsep) if x]
    with Interpreters(pythons) as interpreters:
        outcome = compare_published(interpreters, options.litgpt)
        outcome += compare_recordings(interpreters, tuple(options.parts.split(",")))
        caps, verdicts = compare_caps(interpreters)
        stacks = interpreters.versions()
    outcome += caps
    compared = [x for x in outcome if isinstance(x, Comparison)]
    not_run = [x for x in outcome if isinstance(x, NotRun)]
    rules = json.loads((HERE / "post_hoc.json").read_text())["rules"]
    peers = json.loads(PEERS.read_text()) if PEERS.is_file() else None
    text = render(compared, not_run, verdicts, where=_where(stacks), rules=rules, peers=peers)
    (ROOT / "docs" / "accuracy.md").write_text(text)
    _write_results(compared, not_run, verdicts)
    print(text)
    return 0


def _write_results(compared: list[Comparison], not_run: list[NotRun], verdicts: list[dict[str, Any]]) -> None:
    rows = {
        "compared": to_json(compared),
        "not_run": [{"row": r.row, "source": r.source, "reason": r.reason} for r in not_run],
        "verdicts": verdicts,
    }
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in group) + "\n]"
        for name, group in rows.items()
    ]
    (HERE / "results.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _where(stacks: list[str]) -> list[str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 (the user's git)
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [
        f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"commit: {commit.stdout.strip() or 'unknown'}",
        f"machine: {platform.system()} {platform.machine()}, {os.cpu_count()} cores, no GPU used; Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}",
    ]
    lines += [f"rows of other library versions traced with: {stack}" for stack in stacks]
    return lines


if __name__ == "__main__":
    sys.exit(main())
