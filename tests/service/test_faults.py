"""A slice of the fault campaign that `make verify` runs whole."""

from collections import Counter
from pathlib import Path

from tests.fleet.faults import run_faults
from tests.postgres import PostgresServer


def test_jobs_end_once_although_an_agent_is_killed_and_another_frozen(
    postgres_server: PostgresServer, ready_postgres: str, tmp_path: Path
) -> None:
    found = run_faults(
        postgres_server, tmp_path, num_jobs=10, num_agents=2, everything=False, template=ready_postgres
    )

    assert found.wrong == []
    assert found.statuses == Counter(succeeded=6, failed=2, cancelled=2)
    assert max(found.attempts) == 2
