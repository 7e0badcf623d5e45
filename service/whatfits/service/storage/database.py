"""Open a database, and read or write in one transaction; errors of drivers become those of the store.

SQLite runs in WAL mode, so that readers never wait. A transaction that writes takes the write lock when it begins:
one that reads first and locks later could find that another wrote in between, and would fail at once instead of waiting.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from whatfits.estimator.errors import InputError
from whatfits.service.storage.errors import (
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnmigratedError,
)

__all__ = ["lacks_table", "open_database", "parse_database_url", "reading", "translating_errors", "writing"]

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a connection to SQLite waits for another's write to end."""
_CONNECT_TIMEOUT_SECONDS = 10
_ACCEPTED = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_WRITES = "whatfits_writes"
_DISK_FULL = "53100"
_CONNECTION_LOST = ("08", "57P")
"""Source: PostgreSQL 15, appendix A: classes of connection exceptions and of operator intervention."""
_NO_TABLE = ("42P01", "42703", "3F000")
"""Source: the same: undefined table, undefined column, invalid schema name."""
_NO_TABLE_OF_SQLITE = ("no such table", "no such column", "has no column named")
_BUSY = ("40001", "40P01", "53300", "55P03")
"""Source: the same: serialization failure, deadlock, too many connections, lock not available."""


def parse_database_url(text: str) -> URL:
    """The URL of a database with its driver.

    Raises:
        InputError: Not a URL of a kind that is known; the value shown holds no password.
    """
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InputError("database_url", "(not a URL)", _ACCEPTED, reason="it is not a URL") from error
    if url.drivername == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    if url.drivername in ("postgresql", "postgresql+psycopg") and url.database:
        return url.set(drivername="postgresql+psycopg")
    raise InputError("database_url", url.render_as_string(hide_password=True), _ACCEPTED)


def open_database(url: str, *, busy_timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> Engine:
    """An engine whose connections are set up as the store needs them. It connects when it is first used.

    Args:
        url: `sqlite:///FILE` (its folder is made) or `postgresql://...`.
        busy_timeout_seconds: How long a write waits for another's on SQLite.

    Raises:
        InputError: Not such a URL.
        StorageUnavailableError: The folder of the file cannot be made.
    """
    parsed = parse_database_url(url)
    if parsed.drivername != "sqlite":
        arguments = {"connect_timeout": _CONNECT_TIMEOUT_SECONDS}
        return create_engine(parsed, pool_pre_ping=True, connect_args=arguments)
    _make_folder(Path(str(parsed.database)))
    engine = create_engine(parsed, connect_args={"timeout": busy_timeout_seconds})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session that reads one state of the database."""
    with translating_errors(engine), Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session whose changes are kept together when the block ends, and none of them when it raises."""
    bind = engine.execution_options(**{_WRITES: True})
    with translating_errors(engine), Session(bind) as session, session.begin():
        yield session


@contextmanager
def translating_errors(engine: Engine) -> Iterator[None]:
    """Turn what a driver raises into an error of the store."""
    try:
        yield
    except StatementError as error:
        if isinstance(error.orig, InputError):  # a value that no column can hold
            raise error.orig from error
        if isinstance(error, DBAPIError):
            raise _storage_error(error, engine.url) from error
        raise
    except PoolTimeoutError as error:
        raise StorageUnavailableError(f"the database {_shown(engine.url)} has no free connection") from error


def lacks_table(error: DBAPIError) -> bool:
    """Whether a driver says that a table or a column is not there."""
    said = str(error.orig)
    return getattr(error.orig, "sqlstate", None) in _NO_TABLE or any(
        missing in said for missing in _NO_TABLE_OF_SQLITE
    )


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageUnavailableError(f"cannot make the folder {file.parent}: {error.strerror}") from error


def _set_up_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # this module begins transactions, not the driver
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA foreign_keys = ON")
        _enter_wal(cursor)
    finally:
        cursor.close()


def _enter_wal(cursor: Any) -> None:  # Any: the cursor of a driver
    """Switching to WAL takes an exclusive lock for which SQLite does not always wait by itself."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _begin_sqlite(connection: Any) -> None:  # Any: sqlalchemy's event passes a Connection
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _storage_error(error: DBAPIError, url: URL) -> StorageError:
    """What a driver's error means for whoever asked."""
    where, said = _shown(url), str(error.orig).strip()
    state = getattr(error.orig, "sqlstate", None) or ""
    if "disk is full" in said or state == _DISK_FULL:
        return StorageFullError(f"the disk of the database {where} is full")
    if "is locked" in said or state in _BUSY:
        return StorageUnavailableError(f"the database {where} is busy: {said}")
    if lacks_table(error):
        return UnmigratedError(f"the database {where}", said.splitlines()[0])
    lost = error.connection_invalidated or state.startswith(_CONNECTION_LOST)
    unreached = not state and url.drivername != "sqlite" and isinstance(error, OperationalError)
    if lost or unreached or "unable to open" in said:
        return StorageUnavailableError(f"the database {where} cannot be reached: {said}")
    return StorageError(f"the database {where} refuses: {said}")


def _shown(url: URL) -> str:
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
