"""`whatfits measurements`: what the store holds, and files of it.

The commands use the database itself, as agents do, and not a server: they work on a machine where none runs.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from whatfits.estimator.specs import MeasurementStatus

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="sqlite:///FILE or postgresql://...; by default $WHATFITS_DATABASE_URL, or a file in your data folder."
    ),
]  # fmt: skip
Filter = Annotated[str | None, typer.Option(metavar="NAME", help="Only these.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON that the REST API gives.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the measurement.")]


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


@app.command("list", short_help="Measurements, newest first.")
def list_(
    status: Filter = None,
    queue: Filter = None,
    campaign: Filter = None,
    source: Filter = None,
    model: Filter = None,
    optimizer: Filter = None,
    cursor: Annotated[str | None, typer.Option(metavar="TEXT", help="The page after this one.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Measurements on a page, at most 200.")] = 50,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List what was measured, is measured and waits, each beside its estimate."""
    from whatfits.service.cli.measurement_views import list_measurements
    from whatfits.service.storage.measurements import MeasurementFilters

    filters = MeasurementFilters(
        status=check_status(status),
        queue=queue,
        campaign=campaign,
        source=source,
        model=model,
        optimizer=optimizer,
    )
    list_measurements(open_store(database_url), filters, cursor=cursor, limit=limit, as_json=as_json)


@app.command("show", short_help="One measurement beside its estimate.")
def show(measurement_id: Id, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Print what was asked, what was expected, what came of it, and the difference."""
    from whatfits.service.cli.measurement_views import show_measurement

    show_measurement(open_store(database_url), measurement_id, as_json=as_json)


@app.command("cancel", short_help="Stop a measurement.")
def cancel(measurement_id: Id, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """End a measurement at once where it waits; where it runs, its agent ends it within two seconds."""
    from whatfits.service.cli.measurement_views import cancel_measurement

    cancel_measurement(open_store(database_url), measurement_id, as_json=as_json)


@app.command("watch", short_help="Follow a measurement to its end.")
def watch(measurement_id: Id, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Print progress as it comes, and the measurement when it is final. Exit status 1: it failed or was cancelled."""
    from whatfits.service.cli.measurement_views import watch_measurement

    watch_measurement(open_store(database_url), measurement_id, as_json=as_json)


def check_status(name: str | None) -> "MeasurementStatus | None":
    """The status of that name.

    Raises:
        InputError: There is none.
    """
    from whatfits.estimator.specs import MeasurementStatus
    from whatfits.service.cli.questions import require_choice

    if name is None:
        return None
    require_choice("--status", name, tuple(MeasurementStatus))
    return MeasurementStatus(name)
