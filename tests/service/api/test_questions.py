"""`POST /plans` and `POST /estimates` with valid questions."""

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec

HEADLINE = {"model": "llama-13b", "hardware": "8xa100-80gb", "seq_len": 2048}
RUN = {
    "model": "llama-13b",
    "training": {"optimizer": {"name": "apollo_mini"}},
    "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 8},
}


def test_a_plan_request_reaches_the_planner_as_sent_and_its_plan_comes_back(
    api: TestClient, planner: FakePlanner
) -> None:
    response = api.post("/api/v1/plans", json=HEADLINE)

    assert response.status_code == 200
    assert planner.asked == [PlanRequest.model_validate(HEADLINE)]
    expected = FakePlanner().plan(PlanRequest.model_validate(HEADLINE))
    assert Plan.model_validate_json(response.content) == expected


def test_a_run_reaches_the_planner_as_sent_and_its_estimate_comes_back(
    api: TestClient, planner: FakePlanner
) -> None:
    response = api.post("/api/v1/estimates", json=RUN)

    assert response.status_code == 200
    assert planner.asked == [RunSpec.model_validate(RUN)]
    assert Estimate.model_validate_json(response.content) == FakePlanner().estimate(
        RunSpec.model_validate(RUN)
    )


@pytest.mark.parametrize(
    ("query", "asked"), [("", False), ("?explain=true", True), ("?explain=false", False)]
)
def test_an_explanation_is_made_when_it_is_asked_for(
    api: TestClient, planner: FakePlanner, query: str, *, asked: bool
) -> None:
    assert api.post(f"/api/v1/estimates{query}", json=RUN).status_code == 200
    assert planner.asked_to_explain is asked


def test_the_content_of_a_config_is_a_model(api: TestClient) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 32000,
    }

    response = api.post("/api/v1/plans", json={"model": config, "hardware": "h100"})

    assert response.status_code == 200


def test_start_up_warms_the_planner(api: TestClient, planner: FakePlanner) -> None:
    assert planner.warmed_up


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/healthz"])
def test_the_server_says_that_it_is_alive(api: TestClient, path: str) -> None:
    assert api.get(path).json() == {"status": "ok"}


def test_answers_carry_the_security_headers(api: TestClient) -> None:
    for path in ("/healthz", "/nowhere"):
        headers = api.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
