"""Where the commands write: answers on standard output, warnings on standard error."""

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType
    from rich.table import Table

_WIDTH_WITHOUT_TERMINAL = 160
_CLEAR_LINE = "\x1b[K"


def print_json(answer: BaseModel) -> None:
    """Print an answer as the JSON the REST API gives."""
    _write(answer.model_dump_json(indent=2) + "\n")


def print_rendered(*parts: "RenderableType") -> None:
    """Print tables and lines, in colour on a terminal; names and sentences are never read as markup."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    _write(captured.get())


def build_table(*headings: str, right: tuple[str, ...] = (), title: str | None = None) -> "Table":
    """Build a table without rules; the columns in `right` hold numbers."""
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left")
    return table


def warn(sentence: str) -> None:
    """Print a warning on standard error."""
    typer.echo(f"warning: {sentence}", err=True)


def note(sentence: str) -> None:
    """Say on standard error what takes time, to a person who watches."""
    if sys.stderr.isatty():
        typer.echo(sentence, err=True)


@contextmanager
def progress_line() -> "Iterator[Callable[[str], None]]":
    """A line on standard error that is written over, to a person who watches; gone at the end."""
    shown = sys.stderr.isatty()

    def show(sentence: str) -> None:
        if shown:
            typer.echo(f"\r{_CLEAR_LINE}{sentence}", err=True, nl=False)

    try:
        yield show
    finally:
        show("")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left (`| head`): say no more, and keep the exit status of the answer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
