"""Read a question from options, a file or standard input. Only what was given is passed on: defaults are the specs' own."""

import json
import sys
from pathlib import Path
from typing import Any

from whatfits.service.cli.failures import SpecFileError


def read_spec(source: str) -> dict[str, Any]:  # Any: unchecked JSON, validated by the spec it becomes
    """Read a JSON object from a file, or from standard input if `source` is "-".

    Raises:
        SpecFileError: not there, not readable, not JSON, or not an object.
    """
    name = "standard input" if source == "-" else source
    spec = _parse_object(_read_text(source, name), name)
    if "model" in spec:
        spec["model"] = resolve_model(spec["model"])
    return spec


def resolve_model(model: object) -> object:
    """Return the content of the `config.json` that `model` is the path of, and anything else as it is.

    Paths end here: the estimator and the service see names and contents only.
    """
    if not isinstance(model, str):
        return model
    path = Path(model)
    if path.is_dir() and (path / "config.json").is_file():
        path /= "config.json"
    if not path.is_file() and path.suffix != ".json":
        return model
    return _parse_object(_read_text(str(path), str(path)), str(path))


def drop_unset(**values: object) -> dict[str, Any]:  # Any: unchecked options, as above
    """Keep what was given: an option left out leaves the default to the spec."""
    return {name: value for name, value in values.items() if value is not None and value not in ([], {})}


def _read_text(source: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise SpecFileError(f"{name}: cannot be read ({error.strerror}).") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{name}: not UTF-8 text (byte {error.start}).") from error


def _parse_object(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecFileError(
            f"{name}: not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise SpecFileError(f"{name}: not a spec: nested too deeply.") from error
    if not isinstance(content, dict):
        raise SpecFileError(f"{name}: a JSON object is expected, not {type(content).__name__}.")
    return content
