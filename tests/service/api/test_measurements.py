"""Measurements over REST, carried out by an agent in this process whose child is scripted; on both databases, bad input on one."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from tests.fleet.processes import eventually
from tests.fleet.scripts import Script, make_body
from tests.service.api.desk import PATH, Desk
from whatfits.estimator.errors import UnsupportedError
from whatfits.service.app import create_app
from whatfits.service.settings import Settings


def test_a_measurement_is_accepted_carried_out_and_beside_its_estimate(desk: Desk) -> None:
    body = make_body()
    answer = desk.post(body)

    assert (answer.status_code, answer.headers["Retry-After"]) == (202, "2")
    assert answer.headers["Location"] == f"{PATH}/{answer.json()['id']}"
    assert answer.json()["request"]["spec"]["training"]["optimizer"]["name"] == "adamw"
    found = desk.final(answer.json()["id"])
    assert (found["status"], found["attempts"], found["failure"]) == ("succeeded", 1, None)
    peaks = found["comparison"]["peak_requested_bytes"]
    assert peaks["measured"] == 4096
    assert peaks["estimated"] == found["estimate"]["memory"]["peak_requested_bytes"]
    assert peaks["difference_fraction"] == pytest.approx(4096 / peaks["estimated"] - 1)
    assert found["comparison"]["peak_allocated_bytes"] is None
    assert found["comparison"]["step_time_seconds"]["measured"] == 0.4


@pytest.mark.parametrize(
    ("script", "timeout", "status", "told"),
    [
        (Script.RUN_OUT_OF_MEMORY, 60, "succeeded", ("result", "outcome", "out_of_memory")),
        (Script.RAISE, 60, "failed", ("failure", "kind", "raised")),
        (Script.DIE, 60, "failed", ("failure", "kind", "died")),
        (Script.HANG, 0.5, "failed", ("failure", "kind", "timed_out")),
    ],
)
def test_what_goes_wrong_is_told_and_the_agent_goes_on(
    desk: Desk, script: Script, timeout: float, status: str, told: tuple[str, str, str]
) -> None:
    found = desk.final(desk.submit(script, timeout_seconds=timeout))

    part, key, value = told
    assert (found["status"], found[part][key]) == (status, value)
    assert desk.final(desk.submit())["status"] == "succeeded"


def test_one_that_runs_is_cancelled_with_its_process(desk: Desk) -> None:
    body = make_body(Script.HANG)
    id_ = desk.post(body).json()["id"]
    eventually(desk.runs.read_text)

    assert desk.client.delete(f"{PATH}/{id_}").status_code == 202

    assert desk.final(id_)["status"] == "cancelled"
    pid = int(desk.runs.read_text().split()[1])
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert desk.client.delete(f"{PATH}/{id_}").status_code == 409


def test_one_that_waits_is_cancelled_at_once_and_never_run(desk: Desk) -> None:
    first = desk.submit(Script.HALF_A_SECOND)
    body = make_body()
    second = desk.post(body).json()["id"]

    answer = desk.client.delete(f"{PATH}/{second}")

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert desk.final(first)["status"] == "succeeded"
    assert desk.final(desk.submit())["status"] == "succeeded"
    assert f"{body['seed']} " not in desk.runs.read_text()


def test_the_same_key_with_the_same_body_is_the_same_measurement(desk: Desk) -> None:
    body = make_body()

    first, second = desk.post(body, key="k"), desk.post(body, key="k")

    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    desk.final(first.json()["id"])
    third = desk.post(body, key="k")
    assert (third.status_code, third.json()["status"]) == (202, "succeeded")
    assert len(desk.runs.read_text().splitlines()) == 1


def test_the_same_key_with_another_body_is_refused(desk: Desk) -> None:
    desk.post(make_body(), key="k")

    answer = desk.post(make_body(), key="k")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:whatfits:problem:conflict")


def test_a_device_that_nobody_has_is_refused_naming_what_is_there(desk: Desk) -> None:
    spec = {**make_body()["spec"], "hardware": {"gpu": "b200"}}

    answer = desk.post(make_body(device="gpu", spec=spec))

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:whatfits:problem:no-agent")
    assert "serves gpu/b200-180gb-sxm/x1; registered: cpu/x1 (1)." in answer.json()["detail"]
    assert desk.client.get(PATH, params={"source": "local"}).json()["items"] == []


def test_a_device_that_nobody_has_is_queued_with_a_warning_where_that_is_asked(lonely: Desk) -> None:
    answer = lonely.post(make_body(), query="?when_unavailable=queue")

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.json()["warning"] == "No agent that is there serves cpu/x1; registered: none."
    assert lonely.client.delete(f"{PATH}/{answer.json()['id']}").json()["status"] == "cancelled"


def test_a_run_that_is_not_modelled_is_measured_without_an_estimate_and_says_why(desk: Desk) -> None:
    desk.planner.failure = UnsupportedError("training.loss", "odd", "standard")

    answer = desk.post(make_body())

    assert (answer.status_code, answer.json()["estimate"]) == (202, None)
    assert "Not estimated: spec.training.loss" in answer.json()["warning"]
    assert desk.final(answer.json()["id"])["comparison"] is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec": {"model": "python:os:system", "hardware": {"gpu": "h100"}}}, "spec.model"),
        ({"spec": {"model": "/etc/passwd", "hardware": {"gpu": "h100"}}}, "spec.model"),
        ({"spec": {"model": "llama-7b", "hardware": {"gpu": "no-such"}}}, "spec.hardware.gpu"),
        ({"num_layers": 10_000}, "num_layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"surprise": 1}, "surprise"),
        ({"campaign": ""}, "campaign"),
    ],
)
def test_bad_input_is_named(on_sqlite: Desk, changes: dict[str, Any], field: str) -> None:
    answer = on_sqlite.post(make_body(**changes))

    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["field"], problem["pointer"]) == (field, "/" + field.replace(".", "/"))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"{PATH}?limit=0", {}),
        (f"{PATH}?cursor=nonsense", {}),
        (f"{PATH}?status=lost", {}),
        (f"{PATH}?surprise=1", {}),
        (f"{PATH}/x/events", {"Last-Event-ID": "-1"}),
    ],
)
def test_bad_parameters_are_named(on_sqlite: Desk, path: str, headers: dict[str, str]) -> None:
    answer = on_sqlite.client.get(path, headers=headers)

    assert (answer.status_code, answer.json()["type"]) == (422, "urn:whatfits:problem:invalid-input")
    assert answer.json()["errors"][0]["pointer"] is None


def test_an_id_that_nobody_has_is_not_found(on_sqlite: Desk) -> None:
    answers = [
        on_sqlite.client.get(f"{PATH}/x"),
        on_sqlite.client.delete(f"{PATH}/x"),
        on_sqlite.client.get(f"{PATH}/x/events"),
    ]

    assert [answer.status_code for answer in answers] == [404, 404, 404]


def test_measurements_are_listed_by_campaign_newest_first_page_by_page(lonely: Desk) -> None:
    ids = [
        lonely.post(make_body(campaign="c"), query="?when_unavailable=queue").json()["id"] for _ in range(3)
    ]
    lonely.post(make_body(), query="?when_unavailable=queue")

    first = lonely.client.get(PATH, params={"campaign": "c", "limit": 2})
    link = first.headers["Link"]
    second = lonely.client.get(link.removeprefix("<").partition(">")[0])

    assert link.endswith('; rel="next"')
    assert [item["id"] for item in first.json()["items"] + second.json()["items"]] == ids[::-1]
    assert (second.json()["next_cursor"], "Link" in second.headers) == (None, False)


def test_a_stream_tells_progress_by_number_and_ends_with_the_whole_measurement(desk: Desk) -> None:
    id_ = desk.submit(Script.HALF_A_SECOND)

    events = desk.events(id_)

    assert [(name, number) for name, number, _ in events if name != "status"] == [
        ("progress", "1"),
        ("final", None),
    ]
    assert events[-1][2] == desk.get(id_)


def test_a_stream_goes_on_after_the_last_report_that_was_seen(desk: Desk) -> None:
    id_ = desk.submit()
    desk.final(id_)

    assert [number for _, number, _ in desk.events(id_)] == ["1", "2", None]
    assert [number for _, number, _ in desk.events(id_, after=1)] == ["2", None]
    assert [name for name, _, _ in desk.events(id_, after=2)] == ["final"]


def test_agents_are_listed_with_their_devices(desk: Desk) -> None:
    (agent,) = desk.client.get("/api/v1/agents").json()["items"]

    assert (agent["queue"], agent["slot"], agent["live"]) == ("cpu/x1", "cpu", True)
    assert "torch" in agent["versions"]


def test_a_database_that_is_away_makes_the_server_unready_and_nothing_else() -> None:
    settings = Settings(database_url="postgresql://whatfits@127.0.0.1:1/nothing")
    with TestClient(create_app(settings, planner=FakePlanner())) as client:
        ready = client.get("/readyz")

        assert (ready.status_code, client.get("/healthz").status_code) == (503, 200)
        assert ready.json()["type"] == "urn:whatfits:problem:storage-unavailable"
