"""Read a JSON object as people mean it: a constant that is no JSON, or a key given twice, is an error."""

import json
from typing import Any

__all__ = ["parse_object"]


def parse_object(text: str) -> dict[str, Any]:  # Any: unchecked JSON, validated by the spec it becomes
    """The object that `text` holds.

    Raises:
        ValueError: It holds none; the message says why.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_build_object)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not JSON: {error.msg}, {place}") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("not a spec: nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object is expected, not {type(content).__name__}")  # noqa: TRY004 - one error for one input
    return content


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON value")


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object, refusing a key given twice: which of the two was meant is not ours to guess."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'the key "{twice}" is given twice')
    return content
