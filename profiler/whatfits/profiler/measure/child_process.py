"""The parent's side of a measuring process: its answer, in time, and nothing of it left behind. Needs no torch.

The request goes to the child's standard input as a file; its standard output is JSON lines: any number of
`{"event": "progress", ...}` and one `{"event": "result", ...}` or `{"event": "failure", ...}`. What else it prints
there is passed over.
"""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

from pydantic import TypeAdapter, ValidationError

from whatfits.estimator.specs.base import Spec
from whatfits.estimator.specs.measurement import (
    FailureKind,
    MeasureDevice,
    MeasurementFailure,
    MeasurementResult,
    MeasureRequest,
    Progress,
)
from whatfits.profiler.process_family import MARK, OFFLINE, end_family, has_ended, make_mark, tethered

__all__ = ["Answer", "measure_command", "run_command"]

Answer = MeasurementResult | MeasurementFailure

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 0.5
_EXIT_SECONDS = 5.0
_CHUNK_BYTES = 65536
_LONGEST_LINE = 2**24
"""A result with a thousand samples of every phase has 10^5 bytes."""
_MOST_OUTPUT = 2**28
_SHOWN_STDERR = 2000


class _Event(Spec):
    """A line of the child's answer."""

    event: str
    progress: Progress | None = None
    result: MeasurementResult | None = None
    failure: MeasurementFailure | None = None


_EVENT = TypeAdapter(_Event)


def measure_command(request: MeasureRequest, python: str = sys.executable) -> list[str]:
    """The program that measures a request: one process, or one per GPU under torchrun."""
    program = [python, "-m", "whatfits.profiler.run"]
    if request.device is MeasureDevice.CPU or request.spec.hardware.num_gpus == 1:
        return program
    launcher = [python, "-m", "torch.distributed.run", "--standalone"]
    num_processes = str(request.spec.hardware.num_gpus)
    return [*launcher, "--nproc-per-node", num_processes, "--no-python", *tethered(program)]


def run_command(
    request: MeasureRequest,
    command: Sequence[str],
    *,
    visible_devices: tuple[str, ...] | None,
    on_progress: Callable[[Progress], object],
    should_stop: Callable[[], bool],
) -> Answer | None:
    """Run a program that measures.

    Args:
        request: what it is told.
        command: the program and its arguments.
        visible_devices: what it gets as CUDA_VISIBLE_DEVICES; None leaves the variable alone.
        on_progress: told how far it is.
        should_stop: asked four times a second.

    Returns:
        Its answer, or why there is none; None when `should_stop` said so.
    """
    with _MeasuringProcess(request, command, visible_devices) as child:
        return child.follow(on_progress, should_stop)


class _MeasuringProcess:
    """A running child; a context manager, at whose end the child and whatever it started are gone."""

    def __init__(
        self, request: MeasureRequest, command: Sequence[str], visible_devices: tuple[str, ...] | None
    ) -> None:
        self._request = request
        self._ends_at = time.monotonic() + request.timeout_seconds
        self._mark = make_mark()
        self._kills_before = _count_oom_kills()
        self._output = _Lines()
        self._stderr = bytearray()
        self._last: Progress | None = None
        with tempfile.TemporaryFile() as stdin:
            stdin.write(request.model_dump_json().encode())
            stdin.seek(0)
            self._process = subprocess.Popen(  # noqa: S603  (the program the caller names)
                tethered(command, parent=os.getpid()),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(request, visible_devices, self._mark),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_family(self._process, self._mark, grace_seconds=_GRACE_SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def follow(
        self, on_progress: Callable[[Progress], object], should_stop: Callable[[], bool]
    ) -> Answer | None:
        """Read until there is an answer, or a reason for none."""
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
                        return None
                if now >= self._ends_at:
                    return self._timed_out()
                ended = has_ended(self._process)
                self._read(selector, timeout=0.0 if ended else min(_POLL_SECONDS, self._ends_at - now))
                answer = self._next_answer(on_progress)
                if answer is not None:
                    if not self._output.is_too_much:
                        self._let_it_exit()
                    return answer
                if ended:
                    return self._died()

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

    def _next_answer(self, on_progress: Callable[[Progress], object]) -> Answer | None:
        if self._output.is_too_much:
            return _failed(FailureKind.DIED, "the measuring process was killed as it printed without end")
        for line in self._output.take():
            event = _parse(line)
            if isinstance(event, MeasurementFailure):
                return event
            if event is not None and event.progress is not None:
                self._last = event.progress
                on_progress(event.progress)
            elif event is not None:
                return event.result or event.failure
        return None

    def _let_it_exit(self) -> None:
        until = min(time.monotonic() + _EXIT_SECONDS, self._ends_at)
        while not has_ended(self._process) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS / 10)

    def _timed_out(self) -> MeasurementFailure:
        message = f"no result within {self._request.timeout_seconds:g} s"
        if self._last is not None:
            message += f"; it was {self._last.stage}, {self._last.done} of {self._last.total} done"
        return _failed(FailureKind.TIMED_OUT, message, "timeout_seconds")

    def _died(self) -> MeasurementFailure:
        status = self._process.wait()
        how = f"ended with status {status}" if status >= 0 else f"was killed by {_signal_name(-status)}"
        if _count_oom_kills() > self._kills_before:
            how += "; the system's out-of-memory killer ended a process meanwhile: the machine's memory did not suffice"
        elif status == -signal.SIGKILL:
            how += ", as the system's out-of-memory killer does"
        said = self._stderr.decode(errors="replace").strip()
        return _failed(
            FailureKind.DIED, f"the measuring process {how}, without an answer: {said or 'it said nothing'}"
        )


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


def _parse(line: bytes) -> _Event | MeasurementFailure | None:
    """A line of the answer; None for what the child printed besides; a failure for an answer that is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("event") not in ("progress", "result", "failure"):
        return None
    try:
        event = _EVENT.validate_json(line)
    except ValidationError as error:
        return _failed(
            FailureKind.DIED, f"the measuring process gave an answer that is none: {error}"[:_SHOWN_STDERR]
        )
    if getattr(event, event.event) is None:
        return _failed(FailureKind.DIED, f"the measuring process gave an empty answer: {event.event}")
    return event


def _environment(
    request: MeasureRequest, visible_devices: tuple[str, ...] | None, mark: str
) -> dict[str, str]:
    environment = {**os.environ, **OFFLINE, MARK: mark}
    if request.device is MeasureDevice.CPU:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices)
    return environment


def _failed(kind: FailureKind, message: str, field: str | None = None) -> MeasurementFailure:
    return MeasurementFailure(kind=kind, message=message, field=field)


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
