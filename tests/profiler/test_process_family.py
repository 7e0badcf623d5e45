"""Families of processes that have lost their parent."""

import os
import signal
import subprocess
import sys

from tests.profiler.processes import until
from whatfits.profiler.process_family import MARK, end_orphans, make_mark


def test_orphans_of_a_parent_that_is_gone_are_ended_and_other_families_left() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    marks = (f"{gone.pid}:1:abc", make_mark())
    orphan, kept = (
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            env={**os.environ, MARK: mark},
            start_new_session=True,
        )
        for mark in marks
    )
    try:
        # A program's environment is there to be read a moment after it was started.
        assert until(lambda: end_orphans() >= 0 and orphan.poll() is not None)
        assert orphan.returncode == -signal.SIGKILL
        assert kept.poll() is None
    finally:
        for process in (orphan, kept):
            process.kill()
            process.wait()
