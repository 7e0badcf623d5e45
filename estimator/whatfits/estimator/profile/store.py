"""Find, load and save compiled profiles: shipped ones are package data, traced ones are in the user's folder.

A profile is two files: `<class>.table.json.gz`, read for every plan, and `<class>.program.json.gz`, read when events
are needed. Both places have one folder per library stack; what the user traced comes before what is shipped. A class
for sequences of a multiple of 8 answers for other lengths too where no file is there for those. A direct trace has the
micro-batch and sequence length that it alone answers in its name.
"""

import gzip
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from whatfits.estimator.errors import InputError
from whatfits.estimator.profile.missing import MissingProfileError
from whatfits.estimator.profile.program import FORMAT, EventProgram, ProfileKey
from whatfits.estimator.profile.table import CountTable, build_table

__all__ = [
    "DEFAULT_STACK",
    "PROFILES_VARIABLE",
    "find_stack",
    "known_stacks",
    "load_program",
    "load_table",
    "save_class",
    "save_profile",
    "shipped_classes",
    "shipped_stacks",
    "stack_folder",
    "user_data_folder",
    "user_profiles",
]

DEFAULT_STACK = {"torch": "2.13", "transformers": "5.23"}
PROFILES_VARIABLE = "WHATFITS_PROFILES"
"""Environment variable that names the user's folder of profiles."""

_OF_CONFIG = re.compile(r"-[0-9a-f]{16}-")
Profile = TypeVar("Profile", EventProgram, CountTable)


def stack_folder(stack: Mapping[str, str]) -> str:
    """Folder name of a stack: `torch-2.13_transformers-5.23`."""
    return "_".join(f"{name}-{stack[name]}" for name in sorted(stack))


def user_profiles() -> Path:
    """The user's folder of profiles in the format of this version.

    $WHATFITS_PROFILES, or whatfits/profiles where the platform keeps a user's data.
    """
    chosen = os.environ.get(PROFILES_VARIABLE)
    base = Path(chosen).expanduser() if chosen else user_data_folder() / "profiles"
    return base / f"format-{FORMAT}"


def user_data_folder() -> Path:
    """Where whatfits keeps what is the user's.

    Source: XDG Base Directory Specification 0.8; Apple File System Programming Guide.
    """
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/whatfits").expanduser()
    given = os.environ.get("XDG_DATA_HOME", "")
    base = Path(given) if given.startswith("/") else Path("~/.local/share").expanduser()
    return base / "whatfits"


def _shipped() -> Any:  # Any: importlib's Traversable
    return resources.files("whatfits.estimator.profile") / "data"


def _places() -> tuple[Any, ...]:
    """The user's folder, then the shipped data."""
    return (user_profiles(), _shipped())


def _stacks_in(place: Any) -> Iterator[dict[str, str]]:
    if place.is_dir():
        for folder in sorted(x.name for x in place.iterdir() if x.is_dir() and "-" in x.name):
            yield dict(part.split("-", 1) for part in folder.split("_") if "-" in part)


def shipped_stacks() -> list[dict[str, str]]:
    """Stacks with shipped profiles."""
    return list(_stacks_in(_shipped()))


def known_stacks() -> list[dict[str, str]]:
    """Stacks with profiles, shipped or traced by the user; the default one first, then the newest."""
    found = {stack_folder(s): s for place in _places() for s in _stacks_in(place)}
    return sorted(found.values(), key=lambda s: (s == DEFAULT_STACK, _version_key(s)), reverse=True)


def _version_key(stack: Mapping[str, str]) -> list[list[int]]:
    return [[int(x) for x in stack[name].split(".") if x.isdigit()] for name in sorted(stack)]


def find_stack(wanted: Mapping[str, str] | None) -> dict[str, str]:
    """First known stack that agrees with every version asked for; the default one when nothing is asked.

    Versions agree in major and minor number, so 4.57.6 finds 4.57.

    Raises:
        MissingProfileError: none agrees.
    """
    short = {name: ".".join(version.split(".")[:2]) for name, version in (wanted or {}).items()}
    stacks = known_stacks()
    for stack in stacks if short else [DEFAULT_STACK]:
        if all(stack.get(name) == version for name, version in short.items()):
            return stack
    raise MissingProfileError(None, dict(wanted or {}), stacks)


def shipped_classes(stack: Mapping[str, str]) -> list[str]:
    """Slugs of the structure classes of architectures shipped for a stack, those of single configs left out."""
    folder = _shipped() / stack_folder(stack)
    names = (x.name.removesuffix(".table.json.gz") for x in folder.iterdir() if ".table." in x.name)
    return sorted(name for name in names if not _OF_CONFIG.search(name))


def load_table(key: ProfileKey, stack: Mapping[str, str] | None = None) -> CountTable:
    """Count table of a class.

    Raises:
        MissingProfileError: there is no profile of that class for the stack.
        InputError: the user's file cannot be read.
    """
    return _parse_table(*_find(key, stack, "table"))


def load_program(key: ProfileKey, stack: Mapping[str, str] | None = None) -> EventProgram:
    """Event program of a class.

    Raises:
        MissingProfileError: there is no profile of that class for the stack.
        InputError: the user's file cannot be read.
    """
    return _parse_program(*_find(key, stack, "program"))


def _find(key: ProfileKey, stack: Mapping[str, str] | None, kind: str) -> tuple[Any, int]:
    """File of a profile and when it was written; shipped ones do not change."""
    wanted = stack or DEFAULT_STACK
    for place, is_users in zip(_places(), (True, False), strict=True):
        found = _file_in(place / stack_folder(wanted), key, kind)
        if found is not None:
            return found, found.stat().st_mtime_ns if is_users else 0
    having = [
        known for known in known_stacks()
        if any(_file_in(place / stack_folder(known), key, kind) for place in _places())
    ]  # fmt: skip
    raise MissingProfileError(key, dict(wanted), having)


def _file_in(folder: Any, key: ProfileKey, kind: str) -> Any:
    """The file of a class in a folder, or of the one for multiples of 8 if that answers for all: others have no own."""
    own, other, eights = (
        folder / f"{one.slug}.{kind}.json.gz"
        for one in (key, _of_kind(key, "other"), _of_kind(key, "eights"))
    )
    if own.is_file():
        return own
    return eights if eights.is_file() and not other.is_file() else None


def _of_kind(key: ProfileKey, kind: str) -> ProfileKey:
    """The class of the same range of lengths, of another kind."""
    _, above, window = key.sequence.partition("_above_")
    return replace(key, sequence=kind + above + window)


@lru_cache(maxsize=128)
def _parse_table(path: Any, written: int) -> CountTable:
    return _parse(path, CountTable.from_json, is_users=written > 0)


@lru_cache(maxsize=64)
def _parse_program(path: Any, written: int) -> EventProgram:
    return _parse(path, EventProgram.from_json, is_users=written > 0)


def _parse(path: Any, build: Callable[[Any], Profile], *, is_users: bool) -> Profile:
    try:
        return build(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        if not is_users:
            raise
        accepted = "a profile written by `whatfits trace`; delete the file, or trace again"
        raise InputError(PROFILES_VARIABLE, str(path), accepted, reason=f"{path}: {error}") from error


def save_class(programs: Sequence[EventProgram], folder: Path) -> list[CountTable]:
    """Write what a class needs: one program that answers for all sequence lengths, or one for each kind of them.

    The other lengths' files come first, and go first, so that the files present are never taken to answer for more
    than they do.
    """
    ordered = sorted(programs, key=_is_of_eights)
    tables = [save_profile(program, folder) for program in ordered]
    if all(map(_is_of_eights, programs)):
        for program, lengths, kind in product(programs, ("odd_eights", "other"), ("table", "program")):
            (folder / f"{_of_kind(program.key, lengths).slug}.{kind}.json.gz").unlink(missing_ok=True)
    return tables


def _is_of_eights(program: EventProgram) -> bool:
    """Whether it is of multiples of 8 alone; "eights_and_other" is of several lengths, and answers for no others."""
    return program.key == _of_kind(program.key, "eights")


def save_profile(program: EventProgram, folder: Path) -> CountTable:
    """Write a program and its table into a folder, byte for byte reproducible; returns the table.

    A reader never sees half a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = build_table(program)
    for kind, data in (("table", table.to_json()), ("program", program.to_json())):
        text = json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
        path = folder / f"{program.key.slug}.{kind}.json.gz"
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_bytes(gzip.compress(text, 9, mtime=0))
        unfinished.replace(path)
    return table
