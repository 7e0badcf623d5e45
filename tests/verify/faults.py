"""Faults: 60 jobs on 3 agents and a real PostgreSQL, while agents, database and server are killed, frozen and restarted."""

import tempfile
from pathlib import Path

from tests.fleet.faults import run_faults
from tests.postgres import PACKAGE, find_binaries, running_server
from tests.verify.report import Section

__all__ = ["verify_faults"]

_TITLE = "Every job ends exactly once, whatever dies"
_COLUMNS = ("what", "figure")


def verify_faults(*, num_jobs: int = 60, num_agents: int = 3) -> Section:
    """All faults of the acceptance point, one after the other, under load."""
    binaries = find_binaries()
    if binaries is None:
        reason = f"no PostgreSQL server on this machine: apt-get install {PACKAGE}"
        return Section(title=_TITLE, summary=reason, columns=_COLUMNS, rows=(), failures=(reason,))
    with (
        tempfile.TemporaryDirectory(prefix="whatfits-faults-") as folder,
        running_server(binaries) as postgres,
    ):
        found = run_faults(postgres, Path(folder), num_jobs=num_jobs, num_agents=num_agents, everything=True)
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(found.statuses.items()))
    attempts = ", ".join(f"{count} with {tries}" for tries, count in sorted(found.attempts.items()))
    rows = [
        ("jobs", found.num_jobs),
        ("agents at a time", num_agents),
        ("ended as", statuses),
        ("attempts", attempts),
        ("child processes begun", found.num_runs),
        ("submissions sent twice with one key", found.num_jobs),
        *(("fault", fault) for fault in found.faults),
    ]
    return Section(
        title=_TITLE,
        summary=f"{found.num_jobs} jobs, {len(found.faults)} kinds of fault: {statuses}; {len(found.wrong)} lost, twice or wrong",
        columns=_COLUMNS,
        rows=rows,
        failures=found.wrong,
    )
