"""`whatfits campaigns submit | list | show | cancel`, on a database."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.databases import copy_sqlite
from tests.fleet.scripts import make_body
from tests.measurements import make_agent
from whatfits.service.cli import main
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.database import open_database


@pytest.fixture
def url(ready_sqlite: Path, tmp_path: Path) -> str:
    return f"sqlite:///{copy_sqlite(ready_sqlite, tmp_path)}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two runs."""
    file = tmp_path / "campaign.json"
    matrix = {"base": make_body(seed=1), "optimizers": ["adamw", "lion"]}
    file.write_text(json.dumps({"name": "c", "matrix": matrix}))
    return file


def run(url: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["campaigns", *arguments, "--database-url", url])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def register_agent(url: str) -> None:
    database = open_database(url)
    AgentStore(database).register(make_agent(heartbeat_at=datetime.now(UTC)))
    database.dispose()


def test_a_campaign_is_submitted_once_shown_and_cancelled(
    url: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_agent(url)
    for _ in range(2):
        assert run(url, "submit", str(file), "--json") == 0
        submitted = json.loads(capsys.readouterr().out)
        assert (submitted["total"], submitted["counts"]["queued"], submitted["missing"]) == (2, 2, 0)
    assert run(url, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": [submitted]}
    assert run(url, "show", "c") == 0
    heading, line = capsys.readouterr().out.splitlines()
    shown = dict(zip(heading.split(), line.split(), strict=False))
    assert (shown["campaign"], shown["total"], shown["queued"], shown["cancelled"]) == ("c", "2", "2", "0")
    assert run(url, "cancel", "c", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["cancelled"] == 2
    assert run(url, "cancel", "c") == 2
    assert "nothing is left of the campaign 'c'" in capsys.readouterr().err


def test_without_an_agent_it_is_refused_unless_it_may_wait(
    url: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(url, "submit", str(file)) == 2
    assert "serves cpu/x1; registered: none." in capsys.readouterr().err
    assert run(url, "list") == 0
    assert capsys.readouterr().out == "there is no campaign\n"
    assert run(url, "submit", str(file), "--queue") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["c", "2", "2"]


def test_bad_input_is_named(url: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(json.dumps({"name": "a b", "matrix": {"base": make_body()}}))
    assert run(url, "submit", str(file)) == 2
    assert "name: 'a b' is not accepted" in capsys.readouterr().err
    assert run(url, "show", "none") == 2
    assert capsys.readouterr().err == "error: there is no campaign 'none'\n"
