"""What processes on several machines agree on through their database: the time, and who may do what one alone must do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from whatfits.service.storage.database import translating_errors

__all__ = ["database_now", "try_alone"]

_REAPER_LOCK = 0x77686174_72656170
"""Key of PostgreSQL's advisory lock: `whatreap` in ASCII."""


def database_now(engine: Engine) -> datetime:
    """The time by the database's clock, which is the same for all; that of this machine with a file."""
    if engine.dialect.name == "sqlite":
        return datetime.now(UTC)
    with translating_errors(engine), engine.connect() as connection:
        moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return moment.astimezone(UTC)


@contextmanager
def try_alone(engine: Engine) -> Iterator[bool]:
    """Whether this process alone looks for lost measurements while the block lasts; never waits.

    The lock goes with the connection or the process that holds it.
    """
    if engine.dialect.name == "sqlite":
        with _file_lock(f"{engine.url.database}.reaper") as alone:
            yield alone
        return
    with translating_errors(engine), engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        key = {"key": _REAPER_LOCK}
        alone = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar())
        try:
            yield alone
        finally:
            if alone:
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)


@contextmanager
def _file_lock(path: str) -> Iterator[bool]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
