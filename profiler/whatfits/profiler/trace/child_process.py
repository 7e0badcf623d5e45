"""Trace with the libraries of another Python interpreter, from a process that needs no torch itself.

    TraceError
    |-- InterpreterError    the interpreter cannot be started, or lacks a package; `package` names which
    |-- TraceFailedError    the model's code raised while it was traced
    |   `-- ConfigRefusedError  the config makes no model; `field` names the key of it that is at fault, if one is
    |-- TraceEndedError     the child ended, or answered nonsense, while it traced
    |-- TraceTimeoutError   no answer in time
    `-- TraceMemoryError    the child may not have the memory it needs

Each ends the child; only after a `TraceFailedError` it can be asked again.
"""

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from whatfits.profiler.process_family import MARK, OFFLINE, end_family, make_mark
from whatfits.profiler.trace.child_command import child_command
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.protocol import options_to_json, trace_from_json
from whatfits.profiler.trace.stack import STACK_PACKAGES, short_version

__all__ = [
    "ConfigRefusedError",
    "InterpreterError",
    "TraceChild",
    "TraceEndedError",
    "TraceError",
    "TraceFailedError",
    "TraceMemoryError",
    "TraceTimeoutError",
]

_WITHOUT_DEVICE = {"CUDA_VISIBLE_DEVICES": ""}
_SHOWN_STDERR = 2000
_SHOWN_ANSWER = 200
_LOOKS_EVERY_SECONDS = 0.5
"""Whether the child lives: what it started may keep its standard output open."""
_LARGEST_ANSWER = 2**28


class TraceError(Exception):
    """A trace that could not be made."""


class InterpreterError(TraceError):
    """The interpreter cannot be started, or what it needs is not there."""

    def __init__(self, message: str, package: str | None = None) -> None:
        super().__init__(message)
        self.package = package


class TraceFailedError(TraceError):
    """The code that was traced raised."""


class ConfigRefusedError(TraceFailedError):
    """The config makes no model."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class TraceEndedError(TraceError):
    """The child ended, or answered nonsense, while it traced: the traced code did that to it."""


class TraceTimeoutError(TraceError):
    """No answer in time."""


class TraceMemoryError(TraceError):
    """The child needs more memory than it may have."""


class TraceChild:
    """A running child; a context manager, at whose end the child and whatever it started are gone.

    Attributes:
        versions: full versions of its libraries.
        stack: the same as major.minor, of what a stack is named by.
    """

    def __init__(
        self,
        python: Path | str = sys.executable,
        *,
        timeout_seconds: float = 300.0,
        total_seconds: float = math.inf,
        memory_bytes: int = 0,
    ) -> None:
        """Start the child and read its introduction.

        Args:
            python: interpreter of the environment whose libraries are traced.
            timeout_seconds: the longest that one answer may take.
            total_seconds: the longest that all of them may take together, from the start on.
            memory_bytes: what the child may allocate (RLIMIT_DATA: address space that it alone writes); 0 for no limit.

        Raises:
            InterpreterError: it cannot be started or lacks a package.
            TraceTimeoutError: it does not answer.
        """
        self._timeout_seconds = timeout_seconds
        self._total_seconds = total_seconds
        self._ends_at = time.monotonic() + total_seconds
        self._memory_bytes = memory_bytes
        self._buffer = bytearray()
        self._introduced = False
        self._mark = make_mark()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        try:
            self._process = subprocess.Popen(  # noqa: S603  (the interpreter the caller names)
                child_command(python, memory_bytes),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **OFFLINE, **_WITHOUT_DEVICE, MARK: self._mark},
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise InterpreterError(f"cannot be started ({error.strerror})") from error
        try:
            introduction = self._receive()
        except BaseException:
            self.close()
            raise
        self._introduced = True
        self.python: str = introduction["python"]
        self.versions: dict[str, str] = introduction["versions"]
        self.stack = {name: short_version(self.versions[name]) for name in STACK_PACKAGES}

    def trace(self, dims: Dims, options: StepOptions) -> Trace:
        """Trace one micro-batch.

        Raises:
            TraceError: as the module's docstring says.
        """
        request = {"options": options_to_json(options), "points": [dims]}
        return trace_from_json(self._ask(request, "trace"))

    def describe(self, config: str, architecture: str = "") -> ConfigFacts:
        """What a config's model is, by building it.

        Raises:
            TraceError: as the module's docstring says.
        """
        request = {"describe": {"config": config, "architecture": architecture}}
        return ConfigFacts.from_json(self._ask(request, "facts"))

    def describe_own(self, factory: str) -> ConfigFacts:
        """What the module of a factory, MODULE:FACTORY, is, by building it.

        Raises:
            TraceError: as the module's docstring says.
        """
        return ConfigFacts.from_json(self._ask({"describe": {"factory": factory}}, "facts"))

    def _ask(self, request: dict[str, Any], wanted: str) -> dict[str, Any]:  # Any: JSON
        """What an answer holds under the name that is wanted."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._receive()
        if not isinstance(answer.get(wanted), dict):
            raise self._nonsense(json.dumps(answer))
        found: dict[str, Any] = answer[wanted]
        return found

    def close(self) -> None:
        """Kill the child with whatever it started; it has nothing to save."""
        end_family(self._process, self._mark)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:  # Any: the answer's JSON
        line = self._read_line()
        try:
            answer: dict[str, Any] = dict(json.loads(line))
        except (ValueError, TypeError):
            raise self._nonsense(line) from None
        error = answer.get("error")
        if error is None:
            return answer
        message = f"{error['type']}: {error['message']}" if "type" in error else error["message"]
        if error["kind"] in ("missing_package", "unusable_package"):
            raise InterpreterError(message, error["package"])
        if error["kind"] == "out_of_memory":
            raise self._out_of_memory()
        if error["kind"] == "config_refused":
            raise ConfigRefusedError(error["message"], error.get("field", ""))
        raise TraceFailedError(message)

    def _nonsense(self, answer: str | bytes) -> TraceError:
        said = f"it answered {answer[:_SHOWN_ANSWER]!r}, as no Python that traces would"
        return TraceEndedError(said) if self._introduced else InterpreterError(said)

    def _out_of_memory(self) -> TraceMemoryError:
        return TraceMemoryError(f"it needs more than the {self._memory_bytes / 2**30:.3g} GiB it may have")

    def _read_line(self) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = min(time.monotonic() + self._timeout_seconds, self._ends_at)
        searched = 0
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while self._buffer.find(b"\n", searched) < 0:
                searched = len(self._buffer)
                left = max(deadline - time.monotonic(), 0)
                ended = self._process.poll() is not None
                if not selector.select(0 if ended else min(left, _LOOKS_EVERY_SECONDS)):
                    if ended:
                        raise self._ended()
                    if left:
                        continue
                    limit = min(self._timeout_seconds, self._total_seconds)
                    raise TraceTimeoutError(f"no answer within {limit:g} s")
                data = os.read(stdout.fileno(), 65536)
                if not data:
                    raise self._ended()
                self._buffer += data
                if len(self._buffer) > _LARGEST_ANSWER:
                    raise TraceFailedError(f"an answer of more than {_LARGEST_ANSWER:,} bytes")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _ended(self) -> TraceError:
        status = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - _SHOWN_STDERR, 0))
        text = self._stderr.read().decode(errors="replace").strip()
        if self._memory_bytes and ("MemoryError" in text or "bad_alloc" in text):
            return self._out_of_memory()
        said = f"the child ended with status {status}: {text or 'it said nothing'}"
        return TraceEndedError(said) if self._introduced else InterpreterError(said)
