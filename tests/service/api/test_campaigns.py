"""Campaigns over REST; what is stored when is tested beside the rules."""

from typing import Any

import pytest

from tests.fleet.processes import eventually
from tests.fleet.scripts import make_body
from tests.service.api.desk import Desk

CAMPAIGNS = "/api/v1/campaigns"


def make_campaign(name: str = "c", *, seed: int = 0, **axes: Any) -> dict[str, Any]:
    """Two points, as a client posts them."""
    return {"name": name, "matrix": {"base": make_body(seed=seed), "optimizers": ["adamw", "lion"], **axes}}


def test_a_campaign_is_carried_out_and_the_same_again_is_the_same(desk: Desk) -> None:
    answer = desk.client.post(CAMPAIGNS, json=make_campaign())

    assert (answer.status_code, answer.headers["Location"]) == (202, f"{CAMPAIGNS}/c")
    assert (answer.json()["total"], answer.json()["missing"]) == (2, 0)
    eventually(lambda: desk.client.get(f"{CAMPAIGNS}/c").json()["counts"]["succeeded"] == 2)
    again = desk.client.post(CAMPAIGNS, json=make_campaign())
    none = {"queued": 0, "running": 0, "failed": 0, "cancelled": 0}
    assert (again.status_code, again.json()["counts"]) == (202, {"succeeded": 2, **none})
    assert desk.client.get(CAMPAIGNS).json()["items"] == [again.json()]
    assert len(desk.runs.read_text().splitlines()) == 2
    assert desk.client.delete(f"{CAMPAIGNS}/c").status_code == 409
    other = desk.client.post(CAMPAIGNS, json=make_campaign(seed=100))
    assert (other.status_code, other.json()["type"]) == (409, "urn:whatfits:problem:conflict")


def test_what_waits_is_cancelled(lonely: Desk) -> None:
    refused = lonely.client.post(CAMPAIGNS, json=make_campaign())
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:whatfits:problem:no-agent")
    assert lonely.client.get(CAMPAIGNS).json()["items"] == []

    taken = lonely.client.post(f"{CAMPAIGNS}?when_unavailable=queue", json=make_campaign())
    answer = lonely.client.delete(f"{CAMPAIGNS}/c")

    assert (taken.status_code, taken.json()["counts"]["queued"]) == (202, 2)
    assert (answer.status_code, answer.json()["counts"]["cancelled"]) == (202, 2)


@pytest.mark.parametrize(
    ("changes", "field", "pointer"),
    [
        ({"name": "a b"}, "name", "/name"),
        ({"name": "a/b"}, "name", "/name"),
        ({"matrix": {}}, "matrix.base", "/matrix/base"),
        ({"surprise": 1}, "surprise", "/surprise"),
        (make_campaign(optimizers=["adamw", "no"]), "matrix.optimizers[1]", "/matrix/optimizers/1"),
        (make_campaign(micro_batch_sizes=[0]), "matrix.micro_batch_sizes[0]", "/matrix/micro_batch_sizes/0"),
        (make_campaign(models=["llama-60m", "no"]), "matrix[2].spec.model", "/matrix"),
        (make_campaign(ranks=[4]), "matrix.ranks", "/matrix/ranks"),
        (make_campaign(seq_lens=list(range(1, 502))), "matrix", "/matrix"),
    ],
)
def test_bad_input_is_named(on_sqlite: Desk, changes: dict[str, Any], field: str, pointer: str) -> None:
    url = f"{CAMPAIGNS}?when_unavailable=queue"

    answer = on_sqlite.client.post(url, json={**make_campaign(), **changes})

    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert (problem["field"], problem["pointer"]) == (field, pointer)
    assert on_sqlite.client.get(CAMPAIGNS).json()["items"] == []


def test_a_name_that_nobody_used_is_not_found(on_sqlite: Desk) -> None:
    answers = [on_sqlite.client.get(f"{CAMPAIGNS}/x"), on_sqlite.client.delete(f"{CAMPAIGNS}/x")]

    assert [answer.status_code for answer in answers] == [404, 404]
