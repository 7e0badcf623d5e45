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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("estimator", "optim_impls", "profiler"))]

from benchmarks.accuracy.compare import (  # noqa: E402 (the path is set above)
    compare_caps,
    compare_published,
    compare_recordings,
    compare_trainer,
)
from benchmarks.accuracy.evaluate import Interpreters  # noqa: E402 (the same)
from benchmarks.accuracy.recordings import PARTS  # noqa: E402 (the same)
from benchmarks.accuracy.report import render  # noqa: E402 (the same)
from benchmarks.accuracy.results import Comparison, NotRun, to_json  # noqa: E402 (the same)

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PEERS = ROOT / "benchmarks" / "peers.json"
_TRAINER_LINE = "rows of BERT-large compared on their own: "


def main(arguments: list[str] | None = None) -> int:
    """Compare, print the table, write both files."""
    parser = argparse.ArgumentParser(description="compare the product with published and recorded runs")
    parser.add_argument("--litgpt", type=Path, help="checkout of lit-gpt")
    parser.add_argument("--stack-python", default="", help=f"interpreters, separated by {os.pathsep!r}")
    parser.add_argument("--parts", default=",".join(PARTS), help="recordings to compare")
    parser.add_argument(
        "--render", action="store_true", help="write docs/accuracy.md from the last results alone"
    )
    parser.add_argument(
        "--trainer", action="store_true", help="compare the Trainer's rows alone, keep the other results"
    )
    options = parser.parse_args(arguments)
    if options.render:
        return render_results()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if options.trainer:
        return _replace_trainer()
    pythons = [x for x in options.stack_python.split(os.pathsep) if x]
    with Interpreters(pythons) as interpreters:
        outcome = compare_published(interpreters, options.litgpt)
        outcome += compare_recordings(interpreters, tuple(options.parts.split(",")))
        caps, verdicts = compare_caps(interpreters)
        stacks = interpreters.versions()
    outcome += [*compare_trainer(), *caps]
    _write_results(outcome, verdicts, _where(stacks))
    return render_results()


def render_results() -> int:
    """Write docs/accuracy.md from results.json and benchmarks/peers.json."""
    found = _read_results()
    rules = json.loads((HERE / "post_hoc.json").read_text())["rules"]
    peers = json.loads(PEERS.read_text()) if PEERS.is_file() else None
    text = render(found.compared, found.not_run, found.verdicts, where=found.where, rules=rules, peers=peers)
    (ROOT / "docs" / "accuracy.md").write_text(text)
    print(text)
    return 0


def _replace_trainer() -> int:
    """Compare the Trainer's rows, which need no libraries but those of this process, and keep what else was compared."""
    before, rows = _read_results(), compare_trainer()
    new = {row.row for row in rows}
    kept: list[Comparison | NotRun] = [x for x in before.compared if x.row not in new]
    kept += [x for x in before.not_run if x.row not in new]
    where = [line for line in before.where if not line.startswith(_TRAINER_LINE)]
    now = _where([])
    _write_results([*kept, *rows], before.verdicts, [*where, f"{_TRAINER_LINE}{'; '.join(now)}"])
    return render_results()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Results:
    where: list[str]
    compared: list[Comparison]
    not_run: list[NotRun]
    verdicts: list[dict[str, Any]]


def _read_results() -> _Results:
    results = json.loads(RESULTS.read_text())
    return _Results(
        where=results["where"],
        compared=[
            Comparison(**{k: v for k, v in row.items() if k != "error"}) for row in results["compared"]
        ],
        not_run=[NotRun(**row) for row in results["not_run"]],
        verdicts=results["verdicts"],
    )


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
