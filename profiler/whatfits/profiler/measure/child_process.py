"""The parent's side of a measuring process: its answer, in time, and nothing of it left behind. Needs no torch.

The request goes to the child's standard input as a file; its standard output is JSON lines: any number of
`{"event": "progress", ...}` and one `{"event": "result", ...}` or `{"event": "failure", ...}`. What else it prints
there is passed over.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence

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
from whatfits.profiler.child_lines import ChildEndedError, ChildLines, ChildTimeoutError
from whatfits.profiler.process_family import OFFLINE, tethered

__all__ = ["Answer", "child_environment", "measure_command", "run_command", "several_processes"]

Answer = MeasurementResult | MeasurementFailure

_SHOWN_ERROR = 2000


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
    return several_processes(program, request.spec.hardware.num_gpus, python)


def several_processes(program: Sequence[str], num_processes: int, python: str = sys.executable) -> list[str]:
    """A program as so many processes of one group, under torchrun."""
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [*launcher, "--no-python", *tethered(program)]


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
    answers = _Answers(on_progress)
    text, limit = request.model_dump_json(), request.timeout_seconds
    environment = child_environment(request.device, visible_devices)
    try:
        with ChildLines(command, text=text, timeout_seconds=limit, environment=environment) as child:
            child.follow(answers.take, should_stop)
    except ChildTimeoutError:
        return _failed(
            FailureKind.TIMED_OUT, f"no result within {limit:g} s{answers.where}", "timeout_seconds"
        )
    except ChildEndedError as error:
        return _failed(FailureKind.DIED, f"the measuring process {error}")
    return answers.answer


class _Answers:
    """Makes answers of lines; progress on the way is told."""

    def __init__(self, on_progress: Callable[[Progress], object]) -> None:
        self._on_progress = on_progress
        self._last: Progress | None = None
        self.answer: Answer | None = None

    @property
    def where(self) -> str:
        """How far it was when last heard of."""
        last = self._last
        return "" if last is None else f"; it was {last.stage}, {last.done} of {last.total} done"

    def take(self, line: bytes) -> bool:
        """Whether a line holds the answer; others are told, or passed over."""
        event = _parse(line)
        if isinstance(event, MeasurementFailure):
            self.answer = event
        elif event is not None and event.progress is not None:
            self._last = event.progress
            self._on_progress(event.progress)
        elif event is not None:
            self.answer = event.result or event.failure
        return self.answer is not None


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
            FailureKind.DIED, f"the measuring process gave an answer that is none: {error}"[:_SHOWN_ERROR]
        )
    if getattr(event, event.event) is None:
        return _failed(FailureKind.DIED, f"the measuring process gave an empty answer: {event.event}")
    return event


def child_environment(device: MeasureDevice, visible_devices: tuple[str, ...] | None) -> dict[str, str]:
    """The variables of a child that may use some GPUs, or none; None leaves the choice as it is."""
    environment = {**os.environ, **OFFLINE}
    if device is MeasureDevice.CPU:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices)
    return environment


def _failed(kind: FailureKind, message: str, field: str | None = None) -> MeasurementFailure:
    return MeasurementFailure(kind=kind, message=message, field=field)
