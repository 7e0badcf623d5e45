"""Read a question from options, a file or standard input. Only what was given is passed on: defaults are the specs' own."""

import json
import sys
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog import model_argument
from whatfits.service.cli.failures import SpecFileError


def read_spec(source: str) -> dict[str, Any]:  # Any: unchecked JSON, validated by the spec it becomes
    """Read a JSON object from a file, or from standard input if `source` is "-".

    A path in place of the model is replaced by what the file holds: the estimator and the service see names and contents.

    Raises:
        SpecFileError: not there, not readable, not JSON, or not an object.
    """
    name = "standard input" if source == "-" else source
    spec = _parse_object(_read_text(source, name), name)
    if isinstance(spec.get("model"), str):
        spec["model"] = model_argument(spec["model"])
    return spec


def drop_unset(**values: object) -> dict[str, Any]:  # Any: unchecked options, as above
    """Keep what was given: an option left out leaves the default to the spec."""
    return {name: value for name, value in values.items() if value is not None and value not in ([], {})}


def _read_text(source: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise SpecFileError(f"{name}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{name}: not UTF-8 text (byte {error.start})") from error


def _parse_object(text: str, name: str) -> dict[str, Any]:  # Any: unchecked JSON, as above
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_build_object)
    except json.JSONDecodeError as error:
        raise SpecFileError(
            f"{name}: not JSON: {error.msg}, line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:
        raise SpecFileError(f"{name}: not JSON: {error}") from error
    except RecursionError as error:
        raise SpecFileError(f"{name}: not a spec: nested too deeply") from error
    if not isinstance(content, dict):
        raise SpecFileError(f"{name}: a JSON object is expected, not {type(content).__name__}")
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
