"""Turn an exception into sentences a person can act on and an exit status."""

import ast
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from whatfits.estimator import specs
from whatfits.estimator.errors import InputError, near_matches
from whatfits.service.cli.exit_codes import ExitCode

_UNION_NOISE = frozenset({"literal_error", "model_type", "dict_type", "string_type"})
"""What the other branches of a union say about a value meant for one of them."""


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


def describe_failure(error: Exception) -> Failure:
    """Say what went wrong: bad input names the field, the value and what is accepted."""
    match error:
        case InputError() | SpecFileError():
            return Failure(lines=(str(error),), exit_code=ExitCode.BAD_INPUT)
        case ValidationError():
            return Failure(lines=_describe_validation_error(error), exit_code=ExitCode.BAD_INPUT)
        case MissingExtraError() | ServiceStartError():
            return Failure(lines=(str(error),), exit_code=ExitCode.FAILED)
        case _:
            line = f"internal error: {type(error).__name__}: {error} (WHATFITS_DEBUG=1 shows where)"
            return Failure(lines=(line,), exit_code=ExitCode.FAILED)


def _describe_validation_error(error: ValidationError) -> tuple[str, ...]:
    """One sentence for each wrong field; of the branches of a union only those that took the value's shape."""
    details = error.errors(include_url=False)
    telling = [detail for detail in details if detail["type"] not in _UNION_NOISE]
    fields = {detail["loc"][0] for detail in telling if detail["loc"]}
    rest = [detail for detail in details if detail["type"] in _UNION_NOISE and detail["loc"][:1] != ()]
    kept = [*telling, *(detail for detail in rest if detail["loc"][0] not in fields)]
    return tuple(dict.fromkeys(_describe_detail(detail, error.title) for detail in kept)) or (str(error),)


def _describe_detail(detail: ErrorDetails, model_name: str) -> str:
    path = _field_path(detail["loc"])
    place = ".".join(path) or model_name
    value = detail["input"]
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key; {_accepted_keys(path, model_name)}"
    if detail["type"] == "missing":
        return f"{place}: required, but not given"
    sentence = f"{place}: {_shorten(value)} is not accepted; {_lower_first(detail['msg'])}"
    if detail["type"] == "enum" and isinstance(value, str):
        near = near_matches(value, _quoted_names(detail))
        return f"{sentence}; did you mean {' or '.join(near)}?" if near else sentence
    return sentence


def _field_path(location: Sequence[str | int]) -> tuple[str, ...]:
    """Drop from a location what names a branch of a union, such as `tuple[OptimizerName, ...]`."""
    return tuple(
        str(part) for part in location if isinstance(part, int) or part.isidentifier() and part.islower()
    )


def _quoted_names(detail: ErrorDetails) -> list[str]:
    """Return the names in pydantic's "'a', 'b' or 'c'"."""
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [
        ast.literal_eval(part) for part in expected.replace(" or ", ", ").split(", ") if part.startswith("'")
    ]


def _accepted_keys(path: Sequence[str], model_name: str) -> str:
    """Name the accepted keys nearest to the unknown one, and otherwise all of them."""
    model: type[BaseModel] | None = getattr(specs, model_name, None)
    for part in path[:-1]:
        field = model.model_fields.get(part) if model else None
        model = _find_model(field.annotation) if field else None
    known = sorted(model.model_fields) if model else []
    near = difflib.get_close_matches(path[-1], known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(known)}"


def _find_model(annotation: object) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as `Model | None`, if there is one."""
    candidates = (annotation, *get_args(annotation))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shorten(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
