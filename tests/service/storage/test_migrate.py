"""The migrated schema is that of the tables, and migrating is safe."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from whatfits.service.storage.database import open_database, reading, writing
from whatfits.service.storage.errors import StorageError, StoredDataError
from whatfits.service.storage.migrate import migrate
from whatfits.service.storage.tables import Base


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/whatfits.db"
    else:
        yield request.getfixturevalue("postgres_url")


def test_models_and_migrated_schema_agree(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_comparison_sees_a_difference(engine: Engine) -> None:
    with writing(engine) as session:
        session.execute(text("ALTER TABLE agents ADD COLUMN extra INTEGER"))
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert [(kind, column.name) for kind, _, _, column in found] == [("remove_column", "extra")]


def test_migrating_again_changes_nothing(database_url: str, engine: Engine) -> None:
    with writing(engine) as session:
        session.execute(text("INSERT INTO specs (hash, spec) VALUES ('h', '{}')"))
    migrate(database_url)
    with reading(engine) as session:
        assert session.execute(text("SELECT hash FROM specs")).scalars().all() == ["h"]


def test_processes_that_start_at_once_all_succeed(empty_url: str) -> None:
    code = (
        "import sys; from whatfits.service.storage.shipped import prepare_database; sys.stdin.readline(); "
        "prepare_database(sys.argv[1]).dispose()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, empty_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [(*process.communicate(), process.returncode)[1:] for process in processes]
    assert ended == [("", 0)] * 3
    engine = open_database(empty_url)
    tables = set(inspect(engine).get_table_names())
    with reading(engine) as session:
        versions = session.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        shipped = session.execute(text("SELECT count(*) FROM measurements")).scalar_one()
    engine.dispose()
    assert tables == {*Base.metadata.tables, "alembic_version"}
    assert (len(versions), shipped) == (1, 92)


def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    engine = open_database(empty_url)
    with writing(engine) as session:
        session.execute(text("CREATE TABLE shipped_files (mine INTEGER)"))  # the last one that is made
    with pytest.raises(StorageError, match="shipped_files"):
        migrate(empty_url)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    assert tables == ["shipped_files"]


def test_tables_of_a_newer_version_are_left_alone(database_url: str, engine: Engine) -> None:
    with writing(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoredDataError, match="a newer version of whatfits made the tables"):
        migrate(database_url)
