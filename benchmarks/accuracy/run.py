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
from collections.abc import Sequence
from dataclasses import asdict
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
RESULTS = HERE / "results.json"
PEERS = ROOT / "benchmarks" / "peers.json"


def main(arguments: list[str] | None = None) -> int:
    """Compare, print the table, write both files."""
    parser = argparse.ArgumentParser(description="compare the product with published and recorded runs")
    parser.add_argument("--litgpt", type=Path, help="checkout of lit-gpt")
    parser.add_argument("--stack-python", default="", help=f"interpreters, separated by {os.pathsep!r}")
    parser.add_argument("--parts", default=",".join(PARTS), help="recordings to compare")
    parser.add_argument(
        "--render", action="store_true", help="write docs/accuracy.md from the last results alone"
    )
    options = parser.parse_args(arguments)
    if options.render:
        return render_results()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    pythons = [x for x in options.stack_python.split(os.pathsep) if x]
    with Interpreters(pythons) as interpreters:
        outcome = compare_published(interpreters, options.litgpt)
        outcome += compare_recordings(interpreters, tuple(options.parts.split(",")))
        caps, verdicts = compare_caps(interpreters)
        stacks = interpreters.versions()
    outcome += caps
    _write_results(outcome, verdicts, _where(stacks))
    return render_results()


def render_results() -> int:
    """Write docs/accuracy.md from results.json and benchmarks/peers.json."""
    results = json.loads(RESULTS.read_text())
    compared = [Comparison(**{k: v for k, v in row.items() if k != "error"}) for row in results["compared"]]
    not_run = [NotRun(**row) for row in results["not_run"]]
    verdicts, where = results["verdicts"], results["where"]
    rules = json.loads((HERE / "post_hoc.json").read_text())["rules"]
    peers = json.loads(PEERS.read_text()) if PEERS.is_file() else None
    text = render(compared, not_run, verdicts, where=where, rules=rules, peers=peers)
    (ROOT / "docs" / "accuracy.md").write_text(text)
    print(text)
    return 0


def _write_results(
    outcome: Sequence[Comparison | NotRun], verdicts: list[dict[str, Any]], where: list[str]
) -> None:
    groups: dict[str, list[Any]] = {
        "where": where,
        "compared": to_json(x for x in outcome if isinstance(x, Comparison)),
        "not_run": [asdict(x) for x in outcome if isinstance(x, NotRun)],
        "verdicts": verdicts,
    }
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in group) + "\n]"
        for name, group in groups.items()
    ]
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


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
