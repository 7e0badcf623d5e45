"""From pydantic's validation errors to input errors that name the field, the value and what is accepted."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from whatfits.estimator.errors import InputError, UnknownNameError, near_matches
from whatfits.estimator.specs.base import LIST, OBJECT, TEXT, Spec

__all__ = ["describe_errors", "input_errors"]

_BRANCHES = frozenset({TEXT.tag, LIST.tag, OBJECT.tag})
_QUOTED = re.compile(r"'([^']*)'")


def input_errors(error: ValidationError) -> list[InputError]:
    """One `InputError` for each thing wrong with the input of a spec."""
    return describe_errors(error.errors(include_url=False), _specs().get(error.title))


def describe_errors(
    # pydantic's error entries: `loc`, `type`, `msg`, `input` and `ctx`, whose contents depend on the error's type.
    errors: Iterable[Mapping[str, Any]],
    root: type[BaseModel] | None,
) -> list[InputError]:
    """One `InputError` for each of pydantic's error entries on an input of type `root`."""
    entries = list(errors)
    failed = {tuple(entry["loc"][:-1]) for entry in entries}
    return [
        _describe(entry, root)
        for entry in entries
        # A list whose items failed is reported as too short as well.
        if not (entry["type"] == "too_short" and tuple(entry["loc"]) in failed)
    ]


def _describe(entry: Mapping[str, Any], root: type[BaseModel] | None) -> InputError:
    field, owner = _locate(entry["loc"], root)
    kind, value, context = entry["type"], entry.get("input"), entry.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        key = str(entry["loc"][-1])
        return UnknownNameError(
            field,
            value,
            f"the keys {', '.join(known)}",
            reason=f"there is no key {key!r} here",
            suggestions=near_matches(key, known),
        )
    if kind in ("enum", "literal_error"):
        names = _QUOTED.findall(str(context.get("expected", "")))
        suggestions = near_matches(value, names) if isinstance(value, str) else ()
        return UnknownNameError(field, value, ", ".join(names), suggestions=suggestions)
    reason = None
    accepted = entry["msg"].removeprefix("Input should be ")
    if kind == "missing":
        value, accepted, reason = None, "a value; this key has no default", "is missing"
    elif kind == "bool_parsing":
        accepted = "true or false"
    elif kind == "json_invalid":
        accepted, reason = "a JSON object", f"not valid JSON ({context.get('error', entry['msg'])})"
    elif kind == "too_short":
        accepted = f"at least {context['min_length']} item"
    elif kind in ("model_type", "model_attributes_type"):
        accepted = "an object"
    return InputError(field, value, accepted, reason=reason)


def _locate(
    location: Iterable[int | str], root: type[BaseModel] | None
) -> tuple[str, type[BaseModel] | None]:
    """The path of a location as a reader writes it, and the spec that holds its last key."""
    path, owner, holder = "", root, root
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif owner is not None and part in owner.model_fields:
            path += f".{part}" if path else part
            holder, owner = owner, _spec_in(owner.model_fields[part].annotation)
        elif part not in _BRANCHES:
            path += f".{part}" if path else part
            holder = owner
    return path or "(input)", holder


def _spec_in(annotation: object) -> type[BaseModel] | None:
    """The spec an annotation holds, through unions, tuples and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _spec_in(part))), None)


def _specs() -> dict[str, type[Spec]]:
    return {spec.__name__: spec for spec in _subclasses(Spec)}


def _subclasses(root: type[Spec]) -> Iterator[type[Spec]]:
    for spec in root.__subclasses__():
        yield spec
        yield from _subclasses(spec)
