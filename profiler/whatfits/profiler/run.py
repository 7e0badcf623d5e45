"""Measure one run in this process: `python -m whatfits.profiler.run`, a `MeasureRequest` as JSON on standard input.

Standard output is JSON lines: any number of

    {"event": "progress", "progress": {Progress}}

and at the end one of

    {"event": "result", "result": {MeasurementResult}}
    {"event": "failure", "failure": {MeasurementFailure}}

Out of memory is a result, and whatever the model or the optimizer raises is a failure: the exit status is 0 in either
case. What libraries and the model print goes to standard error. Under torchrun every rank gets the same request, and
rank 0 answers.
"""

import os
import stat
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import (
    AllocatorMode,
    FailureKind,
    MeasureDevice,
    MeasurementFailure,
    MeasureRequest,
    Progress,
    describe_errors,
)
from whatfits.profiler.answers import claim_standard_output, write_answer

__all__ = ["answer", "main"]

_SHOWN_MESSAGE = 2000


def main() -> int:
    """Read the request, measure, answer."""
    answers = claim_standard_output()
    warnings.filterwarnings("ignore", category=FutureWarning)
    is_first = os.environ.get("RANK", "0") == "0"

    def report(progress: Progress) -> None:
        if is_first:
            write_answer(answers, {"event": "progress", "progress": progress.model_dump(mode="json")})

    last = answer(_request_text(), report)
    if is_first:
        write_answer(answers, last)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return (
        0 if alone or last["event"] == "result" else 1
    )  # so that torchrun ends the ranks that wait for this one


def _request_text() -> str:
    """All of standard input. The ranks that torchrun starts share one, of which each reads all where it is a file."""
    if "RANK" in os.environ and stat.S_ISREG(os.fstat(0).st_mode):
        return os.pread(0, os.fstat(0).st_size, 0).decode()
    return sys.stdin.read()


def answer(text: str, report: Callable[[Progress], object]) -> dict[str, Any]:
    """The last line for the text of a request; `report` hears of the progress."""
    try:
        request = MeasureRequest.model_validate_json(text)
    except ValidationError as error:
        problems = describe_errors(error.errors(), MeasureRequest)
        return _failure(FailureKind.REFUSED, "; ".join(map(str, problems)), problems[0].field)
    try:
        _choose_allocator(request)
        from whatfits.profiler.measure.runner import measure  # noqa: PLC0415  (torch reads the choice when it loads)

        result = measure(request, report)
    except InputError as error:
        return _failure(FailureKind.REFUSED, str(error), f"spec.{error.field}")
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed here: pip install 'whatfits[agent]'"
        return _failure(FailureKind.REFUSED, message, None)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever the model's code raises is the answer)
        traceback.print_exc()
        return _failure(FailureKind.RAISED, _describe(error), None)
    return {"event": "result", "result": result.model_dump(mode="json")}


def _choose_allocator(request: MeasureRequest) -> None:
    """Tell torch how its caching allocator grows. Source: torch/csrc docs/notes/cuda, "Memory management"."""
    if request.device is MeasureDevice.GPU:
        expandable = request.spec.allocator is AllocatorMode.EXPANDABLE
        os.environ["PYTORCH_ALLOC_CONF"] = f"expandable_segments:{expandable}"


def _describe(error: BaseException) -> str:
    """Type and message, and the innermost line of code that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})"
    message = f"{type(error).__name__}: {error}"
    return message[:_SHOWN_MESSAGE] + where


def _failure(kind: FailureKind, message: str, field: str | None) -> dict[str, Any]:
    failure = MeasurementFailure(kind=kind, message=message, field=field)
    return {"event": "failure", "failure": failure.model_dump(mode="json")}


if __name__ == "__main__":
    sys.exit(main())
