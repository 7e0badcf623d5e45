"""What an agent that is gone left running on a machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.fleet.processes import open_fleet
from whatfits.profiler.process_family import MARK
from whatfits.service.engine import migrate_engine


def test_the_next_agent_ends_it(database_url: str, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, MARK: f"{gone.pid}:1:abc"},
        start_new_session=True,
    )
    migrate_engine(database_url)
    try:
        with open_fleet(database_url, tmp_path) as fleet:
            fleet.start_agent()
            assert left.wait(timeout=60) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()
