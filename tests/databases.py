"""Fixtures of databases: each test has its own, of both kinds, with the tables made."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

__all__ = [
    "copy_sqlite",
    "database_url",
    "migrated_sqlite",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "ready_postgres",
    "ready_sqlite",
    "ready_url",
]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator["PostgresServer"]:
    """A real server, started when a test first asks for it."""
    from tests.postgres import start_or_skip

    with start_or_skip() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: "PostgresServer") -> str:
    """Name of a database with the tables, to be copied."""
    from whatfits.service.storage.migrate import migrate

    name = postgres_server.create_database()
    migrate(postgres_server.url(name))
    return name


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables, to be copied."""
    from whatfits.service.storage.migrate import migrate

    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{file}")
    return file


@pytest.fixture
def postgres_url(postgres_server: "PostgresServer") -> Iterator[str]:
    """An empty database on PostgreSQL."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the tables and nothing in them: the test runs on SQLite and on PostgreSQL."""
    yield from _copied(request, tmp_path, sqlite="migrated_sqlite", postgres="postgres_template")


@pytest.fixture(params=["sqlite", "postgresql"])
def ready_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database as `whatfits migrate` leaves it: with the queues' tables and the shipped measurements, on either."""
    yield from _copied(request, tmp_path, sqlite="ready_sqlite", postgres="ready_postgres")


@pytest.fixture(scope="session")
def ready_sqlite(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as `ready_url` copies."""
    file = copy_sqlite(migrated_sqlite, tmp_path_factory.mktemp("ready"))
    _make_ready(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def ready_postgres(postgres_server: "PostgresServer") -> str:
    """Name of a database such as `ready_url` copies."""
    name = postgres_server.create_database()
    _make_ready(postgres_server.url(name))
    return name


def copy_sqlite(file: Path, folder: Path) -> Path:
    """A copy of a database that nobody has open."""
    return Path(shutil.copyfile(file, folder / "whatfits.db"))


def _make_ready(url: str) -> None:
    from whatfits.service.engine import migrate_engine
    from whatfits.service.storage.shipped import prepare_database

    prepare_database(url).dispose()
    migrate_engine(url)


def _copied(request: pytest.FixtureRequest, folder: Path, *, sqlite: str, postgres: str) -> Iterator[str]:
    """The URL of a copy of the template of the kind that the test is run with; the fixtures are named."""
    if request.param == "sqlite":
        yield f"sqlite:///{copy_sqlite(request.getfixturevalue(sqlite), folder)}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template=request.getfixturevalue(postgres))
    yield server.url(name)
    server.drop_database(name)
