"""Bring a database to the schema of this version.

One process migrates at a time: PostgreSQL has an advisory lock for it, SQLite its write lock. All of a migration, and all
migrations of one call, happen in one transaction.
"""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, event

from whatfits.service.storage.database import open_database, translating_errors
from whatfits.service.storage.errors import StoredDataError

__all__ = ["migrate"]

_LOCK = 0x77686174_66697473
"""Key of the advisory lock: `whatfits` in ASCII."""


def migrate(url: str) -> None:
    """Create or upgrade the tables of a database; does nothing where they are up to date.

    Raises:
        StorageError: The database cannot be reached or changed, or a newer version of whatfits made its tables.
    """
    engine = open_database(url)
    try:
        with translating_errors(engine):
            _upgrade(engine)
    except CommandError as error:  # Alembic's for a version that it has no file of
        raise StoredDataError(
            f"a newer version of whatfits made the tables of the database ({error})"
        ) from error
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for a connection whose transaction has begun."""
    config = Config()
    config.set_main_option("script_location", "whatfits.service.storage:migrations")
    config.attributes["connection"] = connection
    return config


def _upgrade(engine: Engine) -> None:
    writer = engine.execution_options(whatfits_writes=True)
    if engine.dialect.name == "sqlite":
        # Changing a table makes a new one and drops the old, which must not delete what refers to it.
        event.listen(engine, "connect", _ignore_foreign_keys)
    with writer.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        command.upgrade(alembic_config(connection), "head")


def _ignore_foreign_keys(connection: object, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")  # type: ignore[attr-defined]
