"""Ends a process with everything it started, what it made a session or a daemon of its own included."""

import contextlib
import os
import secrets
import signal
from pathlib import Path

__all__ = ["end_tree", "mark_tree"]

_MARK = "WHATFITS_PROCESS_TREE"
_PROCESSES = Path("/proc")
_MOST_ROUNDS = 20
"""Of looking for what was forked off while the rest was being killed."""


def mark_tree() -> dict[str, str]:
    """The environment variable that tells a tree from all others: what a process starts inherits it."""
    return {_MARK: secrets.token_hex(16)}


def end_tree(group: int, mark: dict[str, str]) -> None:
    """Kill a process group, and on Linux whatever else carries the mark."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    marked = f"{_MARK}={mark[_MARK]}".encode()
    for _ in range(_MOST_ROUNDS):
        escaped = [pid for pid in _running() if pid != group and marked in _environment(pid)]
        if not escaped:
            return
        for pid in escaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _running() -> list[int]:
    return [int(place.name) for place in _PROCESSES.glob("[0-9]*")] if _PROCESSES.is_dir() else []


def _environment(pid: int) -> bytes:
    """Of a process; nothing of one that is gone, or another user's, or dead and not yet waited for."""
    try:
        return (_PROCESSES / str(pid) / "environ").read_bytes()
    except OSError:
        return b""
