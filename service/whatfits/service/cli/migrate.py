"""`whatfits migrate`: make a database ready before servers and agents use it."""

import typer

from whatfits.service.cli.measurements import DatabaseUrl, open_store


def migrate(database_url: DatabaseUrl = None) -> None:
    """Create the tables of a database, or bring them to this version: those of measurements and agents, and those of the queues.

    It also stores the measurements that come with whatfits.
    """
    database = open_store(database_url)
    database.dispose()

    from whatfits.service.engine import migrate_engine

    migrate_engine(database.url.render_as_string(hide_password=False))
    shown = database.url.set(drivername=database.url.get_backend_name())
    typer.echo(f"{shown.render_as_string(hide_password=True)} is ready")
