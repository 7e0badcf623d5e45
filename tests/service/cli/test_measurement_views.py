"""`whatfits measurements list | show | cancel | watch` and `whatfits agents`, on a database."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.databases import copy_sqlite
from tests.measurements import make_agent, make_failure, make_measurement, make_result
from whatfits.estimator.specs import Progress
from whatfits.service.cli import main
from whatfits.service.engine import Engine
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.database import open_database
from whatfits.service.storage.measurements import MeasurementStore


@pytest.fixture
def url(ready_sqlite: Path, tmp_path: Path) -> str:
    """A database with one measurement of each kind."""
    url = f"sqlite:///{copy_sqlite(ready_sqlite, tmp_path)}"
    database = open_database(url)
    store = MeasurementStore(database)
    for id_ in ("done", "broken", "waiting"):
        store.add(make_measurement(id_, campaign="c"))
    store.begin("done", "a")
    store.add_progress("done", Progress(stage="measuring", done=2, total=2))
    store.finish("done", make_result())
    store.finish("broken", make_failure(message="killed by signal 9"))
    AgentStore(database).register(make_agent("a", heartbeat_at=datetime.now(UTC)))
    database.dispose()
    return url


def run(url: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--database-url", url])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_a_list_has_a_line_for_each_with_status_and_outcome(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(url, "measurements", "list", "--campaign", "c") == 0

    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "succeeded" in lines["done"]
    assert "completed" in lines["done"]
    assert "died" in lines["broken"]
    assert "waiting" in lines["waiting"].removeprefix("waiting")


def test_a_list_as_json_is_that_of_the_api_page_by_page(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    cursor: tuple[str, ...] = ()
    for _ in range(2):
        assert run(url, "measurements", "list", "--campaign", "c", "--limit", "2", "--json", *cursor) == 0
        page = json.loads(capsys.readouterr().out)
        seen += [item["id"] for item in page["items"]]
        cursor = ("--cursor", page["next_cursor"]) if page["next_cursor"] else ()

    assert sorted(seen) == ["broken", "done", "waiting"]


def test_a_status_that_does_not_exist_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "measurements", "list", "--status", "succeded") == 2

    assert "--status: 'succeded' is not accepted" in capsys.readouterr().err


def test_one_is_shown_with_its_figures_or_its_reason(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "measurements", "show", "done") == 0
    assert "requested (live tensors)" in capsys.readouterr().out
    assert run(url, "measurements", "show", "broken") == 0
    assert "died: killed by signal 9" in capsys.readouterr().out
    assert run(url, "measurements", "show", "done", "--json") == 0
    assert json.loads(capsys.readouterr().out)["comparison"] is None


def test_an_id_that_nobody_has_is_bad_input(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "measurements", "show", "unknown") == 2

    assert capsys.readouterr().err == "error: there is no measurement 'unknown'\n"


def test_one_that_waits_is_cancelled_and_one_that_ended_is_not(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(url)
    engine.submit("waiting", "cpu/x1")
    engine.close()

    assert run(url, "measurements", "cancel", "waiting") == 0
    assert capsys.readouterr().out == "cancelled\n"
    assert run(url, "measurements", "cancel", "done") == 2
    assert "has ended: it succeeded" in capsys.readouterr().err
    database = open_database(url)
    assert MeasurementStore(database).get("waiting").status == "cancelled"
    database.dispose()


def test_one_is_followed_to_its_end_and_the_exit_status_says_how_it_ended(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(url, "measurements", "watch", "done", "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == "measuring 2 of 2\n"
    assert json.loads(printed.out)["status"] == "succeeded"
    assert run(url, "measurements", "watch", "broken") == 1


def test_agents_are_listed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "agents") == 0
    assert "live" in capsys.readouterr().out
    assert run(url, "agents", "--json") == 0
    (agent,) = json.loads(capsys.readouterr().out)["items"]
    assert (agent["id"], agent["queue"], agent["live"]) == ("a", "cpu/x1", True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "either --slot or --auto"),
        (("--slot", "cpu", "--auto"), "either --slot or --auto"),
        (("--slot", "gpux"), "slot: 'gpux' is not accepted"),
    ],
)
def test_an_agent_without_a_slot_that_exists_is_refused(
    url: str, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(url, "agent", *arguments) == 2

    assert told in capsys.readouterr().err
