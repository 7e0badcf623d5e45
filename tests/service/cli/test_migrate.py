"""`whatfits migrate` makes a database ready, again and again, and shows no password."""

from pathlib import Path

import pytest

from tests.databases import copy_sqlite
from whatfits.service.cli import main
from whatfits.service.engine import Engine
from whatfits.service.storage.database import open_database
from whatfits.service.storage.measurements import MeasurementStore


def migrate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["migrate", *arguments])
    out, err = capsys.readouterr()
    return exit_.value.code, out, err


def test_the_tables_and_the_shipped_measurements_are_there(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert migrate(capsys, "--database-url", postgres_url) == (0, f"{postgres_url} is ready\n", "")

    engine = open_database(postgres_url)
    page = MeasurementStore(engine).list(limit=1)
    engine.dispose()
    assert len(page.items) == 1
    jobs = Engine(postgres_url)
    assert jobs.running() == ()
    jobs.close()


def test_the_environment_names_the_database(
    ready_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{copy_sqlite(ready_sqlite, tmp_path)}"
    monkeypatch.setenv("WHATFITS_DATABASE_URL", url)

    assert migrate(capsys) == (0, f"{url} is ready\n", "")


def test_a_database_that_does_not_answer_is_named_without_its_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = migrate(capsys, "--database-url", "postgresql://whatfits:secret@127.0.0.1:1/whatfits")

    assert (code, out) == (3, "")
    assert "127.0.0.1:1/whatfits" in err
    assert "secret" not in err


def test_what_is_no_database_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = migrate(capsys, "--database-url", "mysql://db/whatfits")

    assert (code, out) == (2, "")
    assert "database_url: 'mysql://db/whatfits' is not accepted" in err
