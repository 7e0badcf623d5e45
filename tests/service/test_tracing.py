"""Models nobody has traced are traced in a child on demand; what cannot be is said by field, within limits."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from whatfits.estimator import estimate_run
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.profile import MissingProfileError
from whatfits.estimator.specs import RunSpec
from whatfits.service.app import create_app
from whatfits.service.settings import Settings
from whatfits.service.tracing import OnDemand, TraceLimits

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


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path))


def question(batch: int = 2, **changes: object) -> dict[str, Any]:
    return {
        "model": {**CONFIG, **changes},
        "training": {"micro_batch_size": batch, "seq_len": 64},
        "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
    }


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
        ({"trust_remote_code": True}, "model.trust_remote_code", "never run"),
        ({"num_attention_heads": "many"}, "model", "expected int"),
        ({"hidden_size": 2**22, "intermediate_size": 2**22, "head_dim": 16}, "model", "more than the 1e+13"),
        ({"vocab_size": 0}, "model", "raised RuntimeError"),
    ],
)
def test_what_cannot_be_traced_is_named(changes: dict[str, Any], field: str, said: str) -> None:
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
        OnDemand(limits).estimate(make_run())


def test_over_rest_the_same_is_a_problem_document() -> None:
    with TestClient(create_app(Settings())) as api:
        response = api.post("/api/v1/estimates", json=question(model_type="nosuch"))

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/model/model_type"
