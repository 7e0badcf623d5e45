"""Whether processes are gone."""

import time
from pathlib import Path

__all__ = ["wait_until_gone"]


def wait_until_gone(pid: int) -> bool:
    """Whether a process ends, or is a zombie, within 20 s."""
    deadline = time.monotonic() + 20
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
