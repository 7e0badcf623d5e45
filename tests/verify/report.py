"""What a verification found, as data and as Markdown."""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["ROOT", "Section", "render"]

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "transformers", "numpy", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One acceptance point: its sentence, its table, and what failed."""

    title: str
    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    failures: Sequence[str] = ()
    seconds: float = 0.0
    is_compared: bool = True
    """False for a point that only states what stands behind a number."""

    @property
    def holds(self) -> bool:
        """Whether nothing failed, and something was compared."""
        return not self.failures and bool(self.rows)

    @property
    def result(self) -> str:
        """One word."""
        return ("pass" if self.holds else "FAIL") if self.is_compared else "not proven"


def render(sections: Sequence[Section], previous: str = "") -> str:
    """The whole report; of sections that did not run now, what the previous report says stays, with its own date."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M}, {_commit()}"
    found = {
        section.title: (
            f"| {section.title} | {section.summary} | {section.result} | {section.seconds:.0f} | {when} |",
            _section(section),
        )
        for section in sections
    }
    found = {**_read(previous), **found}
    lines = [
        "# Verification",
        "",
        "Written by `make verify` (tests/verify/run.py). Do not edit by hand.",
        "",
        *_where(),
        "",
        "| acceptance point | figures | result | seconds | run (UTC), commit |",
        "|---|---|---|--:|---|",
        *(row for row, _ in found.values()),
    ]
    for _, section in found.values():
        lines += ["", *section]
    return "\n".join(lines) + "\n"


def _read(report: str) -> dict[str, tuple[str, list[str]]]:
    """The row and the section of each title of a report."""
    head, *blocks = report.split("\n## ")
    rows = [line for line in head.splitlines() if line.startswith("| ")][1:]
    return {
        block.splitlines()[0]: (row, f"## {block}".rstrip("\n").splitlines())
        for row, block in zip(rows, blocks, strict=True)
    }


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", section.summary, ""]
    lines += [f"* FAILED: {failure}" for failure in section.failures]
    if section.failures:
        lines.append("")
    lines += [_row(section.columns), _row(["---"] * len(section.columns))]
    return [*lines, *(_row(row) for row in section.rows)]


def _row(cells: Sequence[object]) -> str:
    return (
        "| "
        + " | ".join(
            f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
            for cell in cells
        )
        + " |"
    )


def _where() -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return [
        f"* versions: Python {platform.python_version()}, {versions}",
        f"* machine: {platform.system()} {platform.machine()}, {os.cpu_count()} cores, no GPU used",
    ]


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # The report itself is written while the points run.
    changed = len(git("status", "--porcelain", "--", ".", ":(exclude)docs/verify.md").splitlines())
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        f", and {changed} paths not committed" if changed else ""
    )
