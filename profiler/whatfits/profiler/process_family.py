"""A process and everything it starts, ended together: also what changed its session, also when its parent is killed.

A family is whoever descends from a process, shares its session, or carries its mark, an environment variable that every
descendant inherits: by prctl(2) and proc(5), which are Linux's. Elsewhere a process's group alone is ended with it.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARK", "OFFLINE", "end_family", "end_orphans", "has_ended", "make_mark", "tethered"]

MARK = "WHATFITS_FAMILY"
"""Environment variable with the mark of a family, `<pid of the parent>:<its start time>:<random>`."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""No child fetches anything."""

# Source: prctl(2), PR_SET_PDEATHSIG = 1: it outlives execve, and is sent when the thread that started the process ends.
# A file on standard input is opened anew, so that processes that inherit it do not share the place they read at.
_TETHER = """
import ctypes, os, signal, stat, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if sys.argv[1] != "0" and os.getppid() != int(sys.argv[1]):
    os._exit(1)
if stat.S_ISREG(os.fstat(0).st_mode):
    os.dup2(os.open("/proc/self/fd/0", os.O_RDONLY), 0)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit("%s cannot be started (%s)" % (sys.argv[2], error.strerror))
"""
_PROCESSES = Path("/proc")
_POLL_SECONDS = 0.02
_SWEEP_SECONDS = 1.0
_REAP_SECONDS = 5.0


def tethered(command: Sequence[str], *, parent: int = 0) -> list[str]:
    """A command that is killed when the thread that starts it ends; `parent`, where given, has to be alive at its start."""
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(parent), *command]


def make_mark() -> str:
    """The mark of a new family of this process."""
    return f"{os.getpid()}:{_start_time(os.getpid())}:{secrets.token_hex(8)}"


def has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has ended, without reaping it: its id stays taken, so that a signal meets nobody else."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_family(
    process: "subprocess.Popen[bytes]", mark: str | None = None, *, grace_seconds: float = 0.0
) -> None:
    """End a process that leads its session, and its family, and reap it.

    Args:
        process: started with `start_new_session`.
        mark: of the family, where it has one.
        grace_seconds: time after SIGTERM before SIGKILL; 0 to kill at once.
    """
    if grace_seconds and not has_ended(process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + grace_seconds
        while not has_ended(process) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    until = time.monotonic() + _SWEEP_SECONDS
    while (members := _members(process.pid, mark)) and time.monotonic() < until:
        _kill(members)
        time.sleep(_POLL_SECONDS)
    # One that a driver holds in the kernel is reaped by the next Popen (subprocess._cleanup).
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_REAP_SECONDS)


def end_orphans() -> int:
    """Kill the members of families whose parent is gone; returns how many there were."""
    orphans = {
        running.pid
        for running in _list_running()
        if running.mark and _counts_ids_alike(running.pid) and not _is_alive(running.mark)
    }
    _kill(orphans)
    return len(orphans)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A process that is no zombie."""

    pid: int
    parent: int
    session: int
    mark: str | None


def _members(leader: int, mark: str | None) -> set[int]:
    running = _list_running()
    found = {
        each.pid
        for each in running
        if leader in (each.pid, each.session) or (mark is not None and each.mark == mark)
    }
    while more := {each.pid for each in running if each.parent in found and each.pid not in found}:
        found |= more
    return found


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _list_running() -> list[_Running]:
    listed = []
    for pid in (int(entry.name) for entry in _PROCESSES.glob("[0-9]*")):
        fields = _stat_fields(pid)
        if fields and fields[0] not in ("Z", "X"):
            parent, session = int(fields[1]), int(fields[3])
            listed.append(_Running(pid=pid, parent=parent, session=session, mark=_read_mark(pid)))
    return listed


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name: state, parent, group, session, ...; none of one that is gone."""
    try:
        return (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str:
    """Clock ticks from the machine's start to the process's: with its id, a name that is not used twice."""
    fields = _stat_fields(pid)
    return fields[19] if fields else ""


def _is_alive(mark: str) -> bool:
    pid, _, rest = mark.partition(":")
    return pid.isdecimal() and _start_time(int(pid)) == rest.partition(":")[0]


def _counts_ids_alike(pid: int) -> bool:
    """Whether a process is in this one's namespace of ids; in the mark of one in a container, the id is another's here."""
    try:
        return (_PROCESSES / str(pid) / "ns/pid").readlink() == (_PROCESSES / "self/ns/pid").readlink()
    except OSError:
        return False


def _read_mark(pid: int) -> str | None:
    start = f"{MARK}=".encode()
    try:
        variables = (_PROCESSES / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next(
        (each[len(start) :].decode(errors="replace") for each in variables if each.startswith(start)), None
    )
