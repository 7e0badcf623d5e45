"""Load and save compiled profiles. Shipped ones are package data, one folder per library stack.

A profile is two files: `<class>.table.json.gz`, read for every plan, and `<class>.program.json.gz`, read when events
are needed.
"""

import gzip
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile.program import EventProgram, ProfileKey
from whatfits.estimator.profile.table import CountTable, build_table

__all__ = [
    "DEFAULT_STACK",
    "load_program",
    "load_table",
    "save_profile",
    "shipped_classes",
    "shipped_stacks",
    "stack_folder",
]

DEFAULT_STACK = {"torch": "2.13", "transformers": "5.23"}


def stack_folder(stack: dict[str, str]) -> str:
    """Folder name of a stack: `torch-2.13_transformers-5.23`."""
    return "_".join(f"{name}-{stack[name]}" for name in sorted(stack))


def _data() -> Any:
    return resources.files("whatfits.estimator.profile") / "data"


def shipped_stacks() -> list[dict[str, str]]:
    """Stacks with shipped profiles."""
    folders = sorted(x.name for x in _data().iterdir() if x.is_dir())
    return [dict(part.split("-", 1) for part in folder.split("_")) for folder in folders]


def shipped_classes(stack: dict[str, str]) -> list[str]:
    """Slugs of the structure classes shipped for a stack."""
    folder = _data() / stack_folder(stack)
    return sorted(x.name.removesuffix(".table.json.gz") for x in folder.iterdir() if ".table." in x.name)


def _read(key: ProfileKey, folder: str, kind: str) -> Any:
    path = _data() / folder / f"{key.slug}.{kind}.json.gz"
    if not path.is_file():
        accepted = ", ".join(stack_folder(s) for s in shipped_stacks())
        raise UnsupportedError("stack", f"{folder}: {key.slug}", f"a class traced for one of: {accepted}")
    return json.loads(gzip.decompress(path.read_bytes()))


@lru_cache(maxsize=64)
def _table(key: ProfileKey, folder: str) -> CountTable:
    return CountTable.from_json(_read(key, folder, "table"))


@lru_cache(maxsize=64)
def _program(key: ProfileKey, folder: str) -> EventProgram:
    return EventProgram.from_json(_read(key, folder, "program"))


def load_table(key: ProfileKey, stack: dict[str, str] | None = None) -> CountTable:
    """Shipped count table of a class.

    Raises:
        UnsupportedError: no profile of that class is shipped for the stack.
    """
    return _table(key, stack_folder(stack or DEFAULT_STACK))


def load_program(key: ProfileKey, stack: dict[str, str] | None = None) -> EventProgram:
    """Shipped event program of a class.

    Raises:
        UnsupportedError: no profile of that class is shipped for the stack.
    """
    return _program(key, stack_folder(stack or DEFAULT_STACK))


def save_profile(program: EventProgram, folder: Path) -> CountTable:
    """Write a program and its table into a folder, byte for byte reproducible; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table = build_table(program)
    for kind, data in (("table", table.to_json()), ("program", program.to_json())):
        text = json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
        (folder / f"{program.key.slug}.{kind}.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    return table
