"""A child process that answers in lines: read in time, and nothing of it left behind.

ChildEndedError         it ended, or was killed, without an answer; the message says how
`-- ChildTimeoutError   it took longer than it may
"""

import math
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from whatfits.profiler.process_family import MARK, end_family, has_ended, make_mark, tethered

__all__ = ["ChildEndedError", "ChildLines", "ChildTimeoutError"]

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 0.5
_EXIT_SECONDS = 5.0
_CHUNK_BYTES = 65536
_LONGEST_LINE = 2**24
"""A result with a thousand samples of every phase has 10^5 bytes."""
_MOST_OUTPUT = 2**28
_SHOWN_STDERR = 2000


class ChildEndedError(Exception):
    """It gave no answer."""


class ChildTimeoutError(ChildEndedError):
    """It gave none in time."""


class ChildLines:
    """A running child; a context manager, at whose end the child and whatever it started are gone."""

    def __init__(
        self, command: Sequence[str], *, text: str, timeout_seconds: float, environment: Mapping[str, str]
    ) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            text: its standard input.
            timeout_seconds: the longest it may take.
            environment: its variables.
        """
        self._ends_at = time.monotonic() + timeout_seconds
        self._mark = make_mark()
        self._kills_before = _count_oom_kills()
        self._output = _Lines()
        self._stderr = bytearray()
        with tempfile.TemporaryFile() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            self._process = subprocess.Popen(  # noqa: S603  (the program the caller names)
                tethered(command, parent=os.getpid()),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment, MARK: self._mark},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_family(self._process, self._mark, grace_seconds=_GRACE_SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def follow(self, take: Callable[[bytes], bool], should_stop: Callable[[], bool]) -> None:
        """Read until `take` says of a line that it is the last, or `should_stop` says so.

        Raises:
            ChildEndedError: no line was the last.
        """
        asked_at = -math.inf
        with selectors.DefaultSelector() as selector:
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, data=stream)
            while True:
                now = time.monotonic()
                if now - asked_at >= _POLL_SECONDS:
                    asked_at = now
                    if should_stop():
                        return
                if now >= self._ends_at:
                    raise ChildTimeoutError
                ended = has_ended(self._process)
                self._read(selector, timeout=0.0 if ended else min(_POLL_SECONDS, self._ends_at - now))
                if self._output.is_too_much:
                    raise ChildEndedError("was killed as it printed without end")
                if any(take(line) for line in self._output.take()):
                    self._let_it_exit()
                    return
                if ended:
                    raise self._died()

    def _read(self, selector: selectors.BaseSelector, *, timeout: float) -> None:
        """Take what is there; of a process that ended, all that was in the pipes."""
        if not selector.get_map():
            time.sleep(timeout)
            return
        for _ in range(1 if timeout else _LONGEST_LINE // _CHUNK_BYTES):
            ready = selector.select(timeout)
            for key, _ in ready:
                self._read_from(selector, key.data)
            if not ready:
                return

    def _read_from(self, selector: selectors.BaseSelector, stream: IO[bytes]) -> None:
        data = os.read(stream.fileno(), _CHUNK_BYTES)
        if not data:
            selector.unregister(stream)
        elif stream is self._process.stdout:
            self._output.add(data)
        else:
            self._stderr = (self._stderr + data)[-_SHOWN_STDERR:]

    def _let_it_exit(self) -> None:
        until = min(time.monotonic() + _EXIT_SECONDS, self._ends_at)
        while not has_ended(self._process) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS / 10)

    def _died(self) -> ChildEndedError:
        status = self._process.wait()
        how = f"ended with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
        if _count_oom_kills() > self._kills_before:
            how += "; the system's out-of-memory killer ended a process meanwhile: the machine's memory did not suffice"
        elif status == -signal.SIGKILL:
            how += ", as the system's out-of-memory killer does"
        said = self._stderr.decode(errors="replace").strip()
        return ChildEndedError(f"{how}, without an answer: {said or 'it said nothing'}")


class _Lines:
    """Bytes as they come, lines as they are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._total = 0

    @property
    def is_too_much(self) -> bool:
        """Whether a line, or all of it, is longer than any answer."""
        return len(self._buffer) > _LONGEST_LINE or self._total > _MOST_OUTPUT

    def add(self, data: bytes) -> None:
        self._buffer += data
        self._total += len(data)

    def take(self) -> list[bytes]:
        if self._buffer.find(b"\n", self._searched) < 0:
            self._searched = len(self._buffer)
            return []
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        self._searched = len(rest)
        return lines


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _count_oom_kills() -> int:
    """Processes that the system's out-of-memory killer ended since the machine started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
