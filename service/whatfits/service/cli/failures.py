"""Turn an exception into sentences a person can act on and an exit status."""

from dataclasses import dataclass

from pydantic import ValidationError

from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import input_errors
from whatfits.service.cli.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is printed on standard error, a sentence a line, and the status to exit with."""

    lines: tuple[str, ...]
    exit_code: ExitCode


class SpecFileError(Exception):
    """A file (or standard input) cannot be read as the JSON object it should hold."""


class MissingExtraError(Exception):
    """A command needs a part of whatfits that is not installed."""


class ServiceStartError(Exception):
    """The server cannot start on this machine as asked."""


class TraceRunError(Exception):
    """The model's code raised while it was traced, or did not end in time."""


class MeasureRunError(Exception):
    """A run that was to be measured raised, died, or did not end in time."""


def describe_failure(error: Exception) -> Failure:
    """Say what went wrong: bad input names the field, the value and what is accepted."""
    match error:
        case InputError() | SpecFileError():
            return Failure(lines=(str(error),), exit_code=ExitCode.BAD_INPUT)
        case ValidationError():
            return Failure(lines=_describe_validation_error(error), exit_code=ExitCode.BAD_INPUT)
        case MissingExtraError() | ServiceStartError() | TraceRunError() | MeasureRunError():
            return Failure(lines=(str(error),), exit_code=ExitCode.FAILED)
        case _:
            line = f"internal error: {type(error).__name__}: {error} (WHATFITS_DEBUG=1 shows where)"
            return Failure(lines=(line,), exit_code=ExitCode.FAILED)


def _describe_validation_error(error: ValidationError) -> tuple[str, ...]:
    """Word each fault; a list that is wrong only because of its items is not a fault of its own."""
    found = input_errors(error)
    fields = [fault.field for fault in found]
    return tuple(
        str(fault) for fault in found if not any(name.startswith(f"{fault.field}[") for name in fields)
    )
