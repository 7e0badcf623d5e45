"""Fixtures of databases: each test has its own, of both kinds, with the tables made."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

__all__ = ["database_url", "migrated_sqlite", "postgres_server", "postgres_template", "postgres_url"]


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
    if request.param == "sqlite":
        file = tmp_path / "whatfits.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database(template=request.getfixturevalue("postgres_template"))
    yield server.url(name)
    server.drop_database(name)
