"""The lists of what a question can name."""

from fastapi.testclient import TestClient

from whatfits.estimator.catalog import load_gpus, load_models
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.specs import GpuSpec, ModelSpec


def test_every_model_of_the_catalog_is_listed_with_all_its_facts(api: TestClient) -> None:
    items = api.get("/api/v1/models").json()["items"]

    assert [ModelSpec.model_validate(item) for item in items] == list(load_models().values())


def test_every_gpu_of_the_catalog_is_listed_with_all_its_facts(api: TestClient) -> None:
    items = api.get("/api/v1/gpus").json()["items"]

    assert [GpuSpec.model_validate(item) for item in items] == list(load_gpus().values())


def test_every_optimizer_is_listed_with_the_rule_for_its_rank_in_words(api: TestClient) -> None:
    items = api.get("/api/v1/optimizers").json()["items"]

    assert [item["name"] for item in items] == list(OPTIMIZERS)
    for item in items:
        facts = OPTIMIZERS[item["name"]]
        assert item["title"] == facts.title
        assert item["paper"] == facts.paper
        assert item["has_rank"] == (facts.default_rank is not None)
        assert item["default_rank"] == (facts.default_rank.text if facts.default_rank else None)


def test_every_model_and_optimizer_listed_can_be_asked_for(api: TestClient) -> None:
    for model in api.get("/api/v1/models").json()["items"]:
        if model["config"] is not None:
            continue  # answered from a profile of its own, shipped or made by a trace
        request = {"model": model["name"], "hardware": "8xa100-80gb", "seq_len": 128}
        assert api.post("/api/v1/plans", json=request).status_code == 200
    names = [item["name"] for item in api.get("/api/v1/optimizers").json()["items"]]
    request = {"model": "llama-13b", "hardware": "h100", "optimizers": names}
    assert api.post("/api/v1/plans", json=request).status_code == 200
