"""`whatfits migrate`: make a database ready before servers and agents use it."""

import typer

from whatfits.service.cli.measurements import DatabaseUrl, open_store


def migrate(database_url: DatabaseUrl = None) -> None:
    """Create the tables of a database, or bring them to this version; and store the measurements that come with it."""
    engine = open_store(database_url)
    shown = engine.url.set(drivername=engine.url.get_backend_name()).render_as_string(hide_password=True)
    engine.dispose()
    typer.echo(f"{shown} is ready")
