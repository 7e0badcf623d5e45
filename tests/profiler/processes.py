"""Whether processes are gone."""

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["is_running", "until", "wait_until_gone"]


def is_running(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool]) -> bool:
    """Whether a condition holds within 20 s."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def wait_until_gone(pid: int) -> bool:
    """Whether a process ends, or is a zombie, within 20 s."""
    return until(lambda: not is_running(pid))
