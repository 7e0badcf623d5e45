"""`whatfits measurements`: what the store holds, and files of it."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="sqlite:///FILE or postgresql://...; by default $WHATFITS_DATABASE_URL, or a file in your data folder."
    ),
]  # fmt: skip
Filter = Annotated[str | None, typer.Option(metavar="NAME", help="Only these.")]


def open_store(database_url: str | None) -> "Engine":
    """The database that the options and the environment name, ready for use.

    Raises:
        MissingExtraError: The server's parts are not installed.
    """
    from whatfits.service.cli.failures import MissingExtraError

    if find_spec("sqlalchemy") is None or find_spec("pydantic_settings") is None:
        raise MissingExtraError("the store is not installed: pip install 'whatfits[service]'")

    from whatfits.service.settings import Settings
    from whatfits.service.storage.shipped import prepare_database

    return prepare_database(Settings().database_url if database_url is None else database_url)


@app.command("export", short_help="Write measurements to a file, one JSON object a line.")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; - is standard output.")],
    campaign: Filter = None,
    source: Filter = None,
    model: Filter = None,
    optimizer: Filter = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write the measurements that are final, newest first."""
    from whatfits.service.cli.measurement_files import write_measurements
    from whatfits.service.storage.measurements import MeasurementFilters

    filters = MeasurementFilters(campaign=campaign, source=source, model=model, optimizer=optimizer)
    write_measurements(open_store(database_url), file, filters)


@app.command("import", short_help="Store the measurements of a file.")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote; - is standard input.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Store the measurements whose ids are not known yet: all of them, or none when a line is wrong."""
    from whatfits.service.cli.measurement_files import read_measurements

    measurements = read_measurements(file)

    from whatfits.service.storage.exchange import import_measurements

    done = import_measurements(open_store(database_url), measurements)
    typer.echo(f"{done.new} new, {done.known} known already")
