"""Read a question from options, a file or standard input. Only what was given is passed on: defaults are the specs' own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog import model_argument
from whatfits.estimator.errors import InputError, near_matches
from whatfits.service.cli.failures import SpecFileError
from whatfits.service.json_object import parse_object


def read_spec(source: str) -> dict[str, Any]:  # Any: unchecked JSON, validated by the spec it becomes
    """Read a JSON object from a file, or from standard input if `source` is "-".

    A path in place of the model is replaced by what the file holds: the estimator and the service see names and contents.

    Raises:
        SpecFileError: not there, not readable, not JSON, or not an object.
    """
    name = "standard input" if source == "-" else source
    try:
        spec = parse_object(_read_text(source, name))
    except ValueError as error:
        raise SpecFileError(f"{name}: {error}") from error
    if isinstance(spec.get("model"), str):
        spec["model"] = model_argument(spec["model"])
    return spec


def require_choice(flag: str, value: str, accepted: Sequence[str]) -> None:
    """Refuse what is not one of a flag's values.

    Raises:
        InputError: naming what is accepted, and what looks most like it.
    """
    if value not in accepted:
        raise InputError(flag, value, ", ".join(accepted), suggestions=near_matches(value, accepted))


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
