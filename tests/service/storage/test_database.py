"""Opening databases, transactions, and what becomes of a driver's errors."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.measurements import make_measurement
from tests.postgres import PostgresServer
from whatfits.estimator.errors import InputError
from whatfits.service.storage.database import open_database, parse_database_url, reading, writing
from whatfits.service.storage.errors import (
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UnmigratedError,
)
from whatfits.service.storage.measurements import MeasurementStore
from whatfits.service.storage.migrate import migrate


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://h/d", "postgresql://h", "sqlite+aiosqlite:///f"],
)  # fmt: skip
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="accepted: sqlite:///FILE or postgresql://"):
        parse_database_url(url)


def test_a_password_is_never_shown() -> None:
    with pytest.raises(InputError) as caught:
        parse_database_url("mysql://me:secret@host/data")
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.value)
    engine = open_database("postgresql://me:secret@127.0.0.1:1/data")
    with pytest.raises(StorageUnavailableError) as unreachable, reading(engine) as session:
        session.execute(text("SELECT 1"))
    assert "secret" not in str(unreachable.value)
    assert "postgresql://me:***@127.0.0.1:1/data cannot be reached" in str(unreachable.value)


def test_sqlite_is_set_up_and_its_folder_made(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/a/b/whatfits.db")
    with reading(engine) as session:
        pragmas = [
            session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    engine.dispose()
    assert pragmas == ["wal", 1, 30_000]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailableError, match=r"cannot make the folder .*/file/data"):
        open_database(f"sqlite:///{tmp_path}/file/data/whatfits.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "whatfits.db").write_text("not a database " * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        migrate(f"sqlite:///{tmp_path}/whatfits.db")


def test_a_block_that_raises_leaves_nothing_behind(engine: Engine) -> None:
    insert = text("INSERT INTO specs (hash, spec) VALUES ('h', '{}')")
    with pytest.raises(StorageError, match="refuses"), writing(engine) as session:  # noqa: PT012 - the second one raises
        session.execute(insert)
        session.execute(insert)
    with reading(engine) as session:
        assert session.execute(text("SELECT count(*) FROM specs")).scalar_one() == 0


def test_a_locked_sqlite_is_busy_and_readers_do_not_wait(migrated_sqlite: Path, tmp_path: Path) -> None:
    file = tmp_path / "whatfits.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    engine = open_database(f"sqlite:///{file}", busy_timeout_seconds=0.05)
    store = MeasurementStore(engine)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError, match="is busy: database is locked"):
        store.add(make_measurement())
    assert store.list().items == ()
    other.execute("ROLLBACK")
    other.close()
    assert store.add(make_measurement())[1] is True
    engine.dispose()


def test_a_full_disk_is_said_to_be_full_and_nothing_is_half_stored(
    migrated_sqlite: Path, tmp_path: Path
) -> None:
    """SQLite's limit of pages fails like a disk without room."""
    file = tmp_path / "whatfits.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    engine = open_database(f"sqlite:///{file}")
    store = MeasurementStore(engine)
    with writing(engine) as session:
        session.execute(text("PRAGMA max_page_count = 1"))  # SQLite takes the present size instead
    with pytest.raises(StorageFullError, match="is full"):
        store.add(make_measurement(warning="x" * 1_000_000))
    with writing(engine) as session:
        session.execute(text("PRAGMA max_page_count = 1000000"))
    assert store.list().items == ()
    assert store.add(make_measurement())[1] is True
    engine.dispose()


def test_a_restarted_postgresql_is_found_again(
    postgres_server: PostgresServer, postgres_template: str
) -> None:
    name = postgres_server.create_database(template=postgres_template)
    engine = open_database(postgres_server.url(name))
    store = MeasurementStore(engine)
    store.add(make_measurement())
    postgres_server.stop()
    with pytest.raises(StorageUnavailableError):
        store.get("m-1")
    postgres_server.start()
    assert store.get("m-1").id == "m-1"
    engine.dispose()


def test_a_connection_cut_in_a_transaction_is_unavailable(
    postgres_server: PostgresServer, postgres_template: str
) -> None:
    name = postgres_server.create_database(template=postgres_template)
    engine = open_database(postgres_server.url(name))
    with pytest.raises(StorageUnavailableError, match="cannot be reached"), writing(engine) as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    engine.dispose()


def test_a_database_without_tables_names_the_command_that_makes_them(
    postgres_url: str, tmp_path: Path
) -> None:
    for url in (postgres_url, f"sqlite:///{tmp_path}/empty.db"):
        engine = open_database(url)
        with pytest.raises(UnmigratedError, match=r"measurements.*\): run `whatfits migrate` on it"):
            MeasurementStore(engine).get("m-1")
        engine.dispose()


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", StorageFullError),
        ("40P01", StorageUnavailableError),
        ("40001", StorageUnavailableError),
        ("53300", StorageUnavailableError),
        ("57P03", StorageUnavailableError),
        ("42703", UnmigratedError),
        ("22012", StorageError),
    ],
)
def test_what_postgresql_reports_has_a_kind(postgres_url: str, state: str, kind: type[StorageError]) -> None:
    """The server raises the state that it has for a full disk, a deadlock and so on."""
    engine = open_database(postgres_url)
    raising = text(f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(StorageError) as caught, writing(engine) as session:
        session.execute(raising)
    engine.dispose()
    assert type(caught.value) is kind
