"""Models nobody has traced are traced in a child on demand; what cannot be is said by field, within limits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from whatfits.estimator import estimate_run
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.profile import MissingProfileError
from whatfits.estimator.specs import Estimate, RunSpec
from whatfits.service.app import create_app
from whatfits.service.domain.estimator_planner import EstimatorPlanner
from whatfits.service.settings import Settings
from whatfits.service.trace_limits import TraceLimits
from whatfits.service.tracing import OnDemand

CONFIG = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
NO_CHILD = TraceLimits(timeout_seconds=0.01)
"""No child is up within it: what is answered was known."""


@pytest.fixture(scope="module", autouse=True)
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One store for all tests, which ask about different models."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("profiles")
        patch.setenv("WHATFITS_PROFILES", str(folder))
        yield folder


def question(batch: int = 2, **changes: object) -> dict[str, Any]:
    return {
        "model": {**CONFIG, **changes},
        "training": {"micro_batch_size": batch, "seq_len": 64},
        "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
    }


def plan_of(**changes: object) -> dict[str, Any]:
    return {"model": {**CONFIG, **changes}, "hardware": "a100-80gb-sxm", "seq_len": 64}


def make_run(batch: int = 2, **changes: object) -> RunSpec:
    return RunSpec.model_validate(question(batch, **changes))


def test_a_direct_trace_is_kept_and_answers_its_own_question_alone() -> None:
    answer = OnDemand().estimate(make_run())

    assert answer.provenance.profile.endswith("-only_b2_s64")
    assert any("direct trace of this micro-batch" in x for x in answer.provenance.assumptions)
    assert estimate_run(make_run()) == answer
    with pytest.raises(MissingProfileError):
        estimate_run(make_run(batch=3))


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"model_type": "nosuch"}, "model.model_type", "no model type 'nosuch'"),
        ({"model_type": "nosuch", "auto_map": {}}, "model.auto_map", "never run"),
        ({"pad_token_id": "many"}, "model.pad_token_id", "expected"),
        ({"hidden_act": "evil"}, "model.hidden_act", "cannot be built from the config: KeyError: 'evil'"),
        ({"hidden_size": 2**22, "intermediate_size": 2**22, "head_dim": 16}, "model", "at most 1e+13"),
        ({"num_key_value_heads": 3}, "model", "tracing mistral raised RuntimeError"),
    ],
)
def test_what_the_child_finds_is_named(changes: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InputError, match="accepted") as raised:
        OnDemand().estimate(make_run(**changes))
    assert raised.value.field == field
    assert said in str(raised.value)


def test_a_loop_over_tokens_is_refused_at_once_with_the_longest_sequence() -> None:
    """And says what it is computed without, where it is short enough."""
    model = {
        "model_type": "mamba",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 64,
        "state_size": 4,
    }
    run = make_run().model_dump(mode="json") | {"model": model}
    long = {**run, "training": {**run["training"], "seq_len": 65536}}

    answer = OnDemand().estimate(RunSpec.model_validate(run))
    with pytest.raises(
        UnsupportedError, match=r"one token after the other.*at most \d+ for this model"
    ) as raised:
        OnDemand().estimate(RunSpec.model_validate(long))

    assert raised.value.field == "training.seq_len"
    assert any("Computed without causal_conv1d and mamba_ssm" in x for x in answer.provenance.assumptions)
    assert any("length by length" in x for x in answer.provenance.assumptions)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (TraceLimits(timeout_seconds=0.5), "no answer within 0.5 s"),
        (TraceLimits(memory_bytes=2**25), "GiB it may have"),
    ],
)
def test_a_trace_has_limits(limits: TraceLimits, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OnDemand(limits).estimate(make_run(vocab_size=500))


def test_a_question_asked_twice_at_once_is_traced_once() -> None:
    said: list[str] = []
    asked = OnDemand(TraceLimits(timeout_seconds=200), notify=said.append)

    def ask(_: int) -> Estimate:
        return asked.estimate(make_run(vocab_size=600))

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(ask, range(3))

    assert all(other == first for other in others)
    assert len(said) == len(["building the model", "tracing its class"])


def test_where_too_many_questions_wait_the_next_is_told_when_to_come_back() -> None:
    planner = EstimatorPlanner(TraceLimits(timeout_seconds=200, max_waiting=1))
    with TestClient(create_app(Settings(), planner=planner)) as api, ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(api.post, "/api/v1/estimates", json=question(vocab_size=700 + number))
            for number in range(2)
        ]
        health = api.get("/healthz")
        answers = sorted((future.result() for future in asked), key=lambda answer: answer.status_code)

    assert [answer.status_code for answer in answers] == [200, 503]
    assert health.status_code == 200
    busy = answers[1]
    assert busy.headers["content-type"] == "application/problem+json"
    assert int(busy.headers["retry-after"]) > 0
    assert busy.json()["type"] == "urn:whatfits:problem:busy"


@pytest.fixture(scope="module")
def api() -> Iterator[TestClient]:
    """A server that can answer only what it need not trace."""
    with TestClient(create_app(Settings(), planner=EstimatorPlanner(NO_CHILD))) as client:
        yield client


@pytest.mark.parametrize("path", ["estimates", "plans"])
@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"model_type": None}, "model_type", "neither model_type nor architectures"),
        ({"model_type": 7}, "model_type", "no model_type"),
        ({"trust_remote_code": True}, "trust_remote_code", "never run"),
        ({"num_attention_heads": "many"}, "num_attention_heads", "'many' is not accepted"),
        ({"vocab_size": -1}, "vocab_size", "1 to 16777216"),
        ({"hidden_size": 64.0}, "hidden_size", "a whole number"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers", "1 to 1024"),
        ({"num_hidden_layers": 10**6, "model_type": "llama"}, "num_hidden_layers", "1 to 1024"),
        ({"rope_scaling": {"deep": [[[{}]]] * 2 + [{"vocab_size": 0}]}}, "rope_scaling", "vocab_size: 0"),
    ],
)
def test_over_rest_what_no_model_can_be_is_refused_before_anything_is_built(
    api: TestClient, path: str, changes: dict[str, Any], field: str, said: str
) -> None:
    asked = question(**changes) if path == "estimates" else plan_of(**changes)

    response = api.post(f"/api/v1/{path}", json=asked)

    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["pointer"].startswith(f"/model/{field}")
    assert error["accepted"]
    assert said in error["detail"]


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ("NaN", 422, "a finite number"),
        ("1e999", 422, "a finite number"),
        ("[" * 100 + "]" * 100, 422, "nested too deeply"),
        ("[" * 50_000 + "]" * 50_000, 400, "cannot be read as JSON"),
        ("1" * 5_000, 400, "cannot be read as JSON"),
        ("{", 400, "not JSON"),
    ],
)
def test_over_rest_what_is_no_config_is_a_problem_document(
    api: TestClient, value: str, status: int, said: str
) -> None:
    body = f'{{"model": {{"model_type": "mistral", "x": {value}}}, "hardware": "a100-80gb-sxm"}}'

    response = api.post("/api/v1/plans", content=body, headers={"content-type": "application/json"})

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert said in response.json()["detail"]
    assert api.get("/healthz").json() == {"status": "ok"}


def test_over_rest_code_is_never_loaded(api: TestClient) -> None:
    response = api.post("/api/v1/estimates", json={**question(), "model": "python:os:getcwd"})

    assert response.status_code == 422
    assert "code is never loaded for a request" in response.json()["detail"]
