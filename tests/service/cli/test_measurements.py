"""`whatfits measurements export` and `import`."""

import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from tests.measurements import make_measurement, make_result
from whatfits.service.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["measurements", *arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/whatfits.db"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    measurement = make_measurement("mine", status="succeeded", result=make_result())
    file = tmp_path / "box.jsonl"
    file.write_text(measurement.model_dump_json() + "\n\n")
    return file


def test_a_file_goes_in_once_and_comes_out(
    database: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", str(file), "--database-url", database) == 0
    assert run("import", str(file), "--database-url", database) == 0
    assert capsys.readouterr().out == "1 new, 0 known already\n0 new, 1 known already\n"
    out = tmp_path / "out.jsonl.gz"
    assert run("export", str(out), "--source", "box.jsonl", "--database-url", database) == 0
    (line,) = gzip.decompress(out.read_bytes()).splitlines()
    assert json.loads(line) == {**json.loads(file.read_text()), "source": "box.jsonl"}
    assert run("import", str(out), "--database-url", f"sqlite:///{tmp_path}/other.db") == 0
    assert capsys.readouterr().out == "1 new, 0 known already\n"
    assert {path.name for path in tmp_path.iterdir()} >= {"out.jsonl.gz", "box.jsonl"}
    assert not list(tmp_path.glob(".out*"))


def test_a_new_database_holds_what_is_shipped_and_standard_streams_are_files(
    database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("export", "-", "--optimizer", "lion", "--database-url", database) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out.encode())))
    assert run("import", "-", "--database-url", database) == 0
    assert capsys.readouterr().out == "0 new, 2 known already\n"


def test_the_database_of_the_environment_is_used(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATFITS_DATABASE_URL", f"sqlite:///{tmp_path}/by-environment.db")
    assert run("import", str(file)) == 0
    assert (tmp_path / "by-environment.db").exists()


def test_a_wrong_file_is_refused_before_anything_is_opened(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"id": "x", "oops": 1}')
    for name, said in (
        ("wrong.jsonl", "line 1: "),
        ("none.jsonl", "none.jsonl: cannot be read (No such file"),
    ):
        assert run("import", str(tmp_path / name), "--database-url", database) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "not.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "not.jsonl").write_bytes(b"\xff")
    for name, said in (("not.jsonl.gz", "cannot be read"), ("not.jsonl", "not UTF-8")):
        assert run("import", str(tmp_path / name), "--database-url", database) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_written_or_reached_is_said(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", str(tmp_path / "no" / "out"), "--database-url", database) == 2
    assert "cannot be written (No such file" in capsys.readouterr().err
    assert run("export", "-", "--database-url", "mysql://me:secret@h/d") == 2
    assert run("export", "-", "--database-url", "postgresql://me:secret@127.0.0.1:1/d") == 3
    said = capsys.readouterr().err
    assert "postgresql://me:***@127.0.0.1:1/d cannot be reached" in said
    assert "secret" not in said
