"""Every error is a problem document that names the field, the value and what is accepted."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from tests.fakes import FakePlanner
from whatfits.service.app import create_app
from whatfits.service.settings import Settings
from whatfits.service.storage.errors import (
    ConflictError,
    NotFoundError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    StoredDataError,
)
from whatfits.service.trace_limits import TracingBusyError

JSON = {"Content-Type": "application/json"}
MODEL = {"model": "llama-13b"}
HARDWARE = {"hardware": "8xa100-80gb"}
RUN_HARDWARE = {"hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 8}}


def check_problem(response: Any, *, status: int, slug: str, instance: str) -> dict[str, Any]:
    """What holds for every problem document; returns it."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:whatfits:problem:{slug}"
    assert problem["status"] == status
    assert problem["instance"] == instance
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


@pytest.mark.parametrize(
    ("body", "pointer", "value", "accepted", "suggestion"),
    [
        ({"model": "lama-13b", **HARDWARE}, "/model", "lama-13b", "a model of the catalog", "llama-2-13b"),
        ({**MODEL, "hardware": "8xa1000"}, "/hardware", "8xa1000", "a GPU of the catalog", None),
        ({**MODEL, "hardware": "8xh10"}, "/hardware", "8xh10", "a GPU of the catalog", None),
        ({**MODEL, "hardware": "8xa100"}, "/hardware", "8xa100", "memory size", "8xa100-80gb-sxm"),
        ({**MODEL, "hardware": "0xa100-80gb"}, "/hardware", "0xa100-80gb", "GPUs such as", None),
        ({**MODEL, "hardware": 3}, "/hardware", 3, "object", None),
        ({**MODEL, "hardware": {"gpus": "h100"}}, "/hardware/gpus", "h100", "gpu, num_gpus", "gpu"),
        ({**MODEL, **HARDWARE, "seq_len": 0}, "/seq_len", 0, "1", None),
        ({**MODEL, **HARDWARE, "seq_len": "long"}, "/seq_len", "long", "integer", None),
        ({**MODEL, **HARDWARE, "seq_length": 9}, "/seq_length", 9, "seq_len", "seq_len"),
        ({**MODEL, **HARDWARE, "a/b~c": 9}, "/a~1b~0c", 9, "seq_len", None),
        ({**MODEL, **HARDWARE, "optimizers": ["adam"]}, "/optimizers/0", "adam", "adamw", "adamw"),
        ({**MODEL, **HARDWARE, "objective": "speed"}, "/objective", "speed", "throughput", None),
        ({**MODEL, **HARDWARE, "ranks": [5121]}, "/ranks", 5121, "1 to 5120", None),
        ({**MODEL, **HARDWARE, "ranks": [0]}, "/ranks/0", 0, "1", None),
        ({**MODEL, **HARDWARE, "global_batch_size": 9}, "/global_batch_size", 9, "multiple of 8", None),
        (HARDWARE, "/model", None, "a value", None),
        ([], "", [], "object", None),
        (None, "", None, "a value", None),
    ],
)
def test_a_wrong_plan_request_is_named(
    api: TestClient, body: Any, pointer: str, value: object, accepted: str, suggestion: str | None
) -> None:
    response = api.post("/api/v1/plans", json=body)

    problem = check_problem(response, status=422, slug="invalid-input", instance="/api/v1/plans")
    assert problem["errors"][0]["detail"] in problem["detail"]
    (error,) = (error for error in problem["errors"] if error["pointer"] == pointer)
    assert error["value"] == value
    assert accepted in error["accepted"]
    if suggestion is not None:
        assert suggestion in error["suggestions"]


@pytest.mark.parametrize(
    ("change", "pointer", "value", "words"),
    [
        ({"parallelism": {"tp_degree": 3}}, "/parallelism", 3, "num_gpus is 8"),
        (
            {"parallelism": {"tp_degree": 16}, "hardware": {"gpu": "h100", "num_gpus": 16}},
            "/parallelism/tp_degree",
            16,
            "tp_degree 16 does not divide 40 attention heads",
        ),
        ({"training": {"seq_len": 0}}, "/training/seq_len", 0, "1"),
        ({"training": {"seqlen": 1}}, "/training/seqlen", 1, "did you mean seq_len"),
        (
            {"training": {"optimizer": {"name": "apollo", "rank": 6000}}},
            "/training/optimizer/rank",
            6000,
            "rank 6000 is above hidden_size 5120",
        ),
        ({"training": {"optimizer": {"name": "rprop"}}}, "/training/optimizer/name", "rprop", "adamw"),
        ({"hardware": {"gpu": "a100"}}, "/hardware/gpu", "a100", "40 GB and 80 GB"),
    ],
)
def test_a_wrong_run_is_named(
    api: TestClient, change: dict[str, Any], pointer: str, value: object, words: str
) -> None:
    response = api.post("/api/v1/estimates", json={**MODEL, **RUN_HARDWARE, **change})

    problem = check_problem(response, status=422, slug="invalid-input", instance="/api/v1/estimates")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert problem["errors"][0]["value"] == value
    assert words in problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("query", "field", "value", "accepted"),
    [
        ("explain=perhaps", "explain", "perhaps", "true or false"),
        ("explain=", "explain", "", "true or false"),
        ("explian=true", "explian", "true", "the keys explain"),
    ],
)
def test_a_wrong_query_parameter_is_named(
    api: TestClient, planner: FakePlanner, query: str, field: str, value: str, accepted: str
) -> None:
    response = api.post(f"/api/v1/estimates?{query}", json={**MODEL, **RUN_HARDWARE})

    problem = check_problem(response, status=422, slug="invalid-input", instance="/api/v1/estimates")
    (error,) = problem["errors"]
    assert (error["pointer"], error["field"], error["value"]) == (None, field, value)
    assert error["accepted"] == accepted
    assert planner.asked == []


def test_everything_wrong_in_the_shape_is_named_at_once(api: TestClient) -> None:
    body = {"hardware": {"gpu": 3, "num": 1}, "seq_len": 0}

    problem = api.post("/api/v1/plans", json=body).json()

    pointers = {error["pointer"] for error in problem["errors"]}
    assert pointers == {"/model", "/hardware/gpu", "/hardware/num", "/seq_len"}
    assert problem["detail"].endswith("(3 more in errors)")


@pytest.mark.parametrize(
    "model",
    [
        "python:os:getcwd",
        "/etc/passwd",
        "./config.json",
        "../x",
        "~/config.json",
        "C:\\config",
        "x/config.JSON",
    ],
)
def test_neither_code_nor_files_are_named_over_the_network(
    api: TestClient, planner: FakePlanner, model: str
) -> None:
    plan = api.post("/api/v1/plans", json={"model": model, **HARDWARE})
    estimate = api.post("/api/v1/estimates", json={"model": model, **RUN_HARDWARE})

    for response, instance in ((plan, "/api/v1/plans"), (estimate, "/api/v1/estimates")):
        problem = check_problem(response, status=422, slug="invalid-input", instance=instance)
        assert problem["errors"][0]["pointer"] == "/model"
        assert "command line only" in problem["errors"][0]["accepted"]
    assert planner.asked == []


def test_what_is_valid_but_not_modelled_has_a_type_of_its_own(api: TestClient) -> None:
    response = api.post("/api/v1/plans", json={**MODEL, **HARDWARE, "precisions": ["fp8"]})

    problem = check_problem(response, status=422, slug="unsupported", instance="/api/v1/plans")
    assert problem["errors"][0]["field"] == "precisions"
    assert problem["errors"][0]["accepted"] == "bf16, bf16_master, bf16_mixed, fp16_mixed, fp32"


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[" * 100_000, b"\xff\xfe", b'{"seq_len": ' + b"1" * 5000 + b"}"]
)
def test_broken_json_is_refused(api: TestClient, content: bytes) -> None:
    response = api.post("/api/v1/plans", content=content, headers=JSON)

    if content:
        check_problem(response, status=400, slug="invalid-json", instance="/api/v1/plans")
    else:
        check_problem(response, status=422, slug="invalid-input", instance="/api/v1/plans")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_sent_as_json_is_refused(api: TestClient, content_type: str) -> None:
    response = api.post("/api/v1/plans", content=b"{}", headers={"Content-Type": content_type})

    check_problem(response, status=415, slug="unsupported-media-type", instance="/api/v1/plans")


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "<script>", "é"])
def test_what_was_sent_comes_back_whatever_its_characters(api: TestClient, text: str) -> None:
    body = f'{{"model": "{text}", "hardware": "h100"}}'.encode()

    response = api.post("/api/v1/plans", content=body, headers=JSON)

    problem = check_problem(response, status=422, slug="invalid-input", instance="/api/v1/plans")
    assert problem["errors"][0]["pointer"] == "/model"


def test_a_long_value_is_shown_shortened(api: TestClient) -> None:
    response = api.post("/api/v1/plans", json={**MODEL, **HARDWARE, "seq_len": "9" * 100_000})

    problem = check_problem(response, status=422, slug="invalid-input", instance="/api/v1/plans")
    assert problem["errors"][0]["value"] == "9" * 200 + "..."
    assert len(response.content) < 3000


def test_an_unknown_path_and_a_wrong_method_are_problems_too(api: TestClient) -> None:
    check_problem(api.get("/api/v1/plan"), status=404, slug="not-found", instance="/api/v1/plan")

    response = api.get("/api/v1/plans")
    problem = check_problem(response, status=405, slug="method-not-allowed", instance="/api/v1/plans")
    assert response.headers["allow"] == "POST"
    assert "POST" in problem["detail"]


@pytest.fixture
def small_api() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(max_body_bytes=100), planner=FakePlanner())) as client:
        yield client


def test_a_body_above_the_limit_is_not_read(small_api: TestClient) -> None:
    fitting = b'{"model": "llama-13b", "hardware": "h100"}'.ljust(100)

    assert small_api.post("/api/v1/plans", content=fitting, headers=JSON).status_code == 200
    response = small_api.post("/api/v1/plans", content=fitting + b" ", headers=JSON)
    problem = check_problem(response, status=413, slug="body-too-large", instance="/api/v1/plans")
    assert "100 bytes" in problem["detail"]


def test_a_body_of_unknown_length_is_read_up_to_the_limit(small_api: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b" " * 60, b" " * 60)

    response = small_api.post("/api/v1/plans", content=chunks(), headers=JSON)

    check_problem(response, status=413, slug="body-too-large", instance="/api/v1/plans")


def test_an_unexpected_error_is_logged_and_answered_without_its_trace() -> None:
    planner = FakePlanner(failure=ZeroDivisionError("secret of the code"))
    with TestClient(create_app(Settings(), planner=planner)) as api, capture_logs() as logs:
        response = api.post("/api/v1/plans", json={**MODEL, **HARDWARE})

    check_problem(response, status=500, slug="internal-error", instance="/api/v1/plans")
    assert "secret" not in response.text
    assert [(entry["event"], entry["path"]) for entry in logs] == [("request.failed", "/api/v1/plans")]
    assert logs[0]["exc_info"]


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (NotFoundError("measurement", "m-1"), 404, "not-found"),
        (ConflictError("the key was used"), 409, "conflict"),
        (StorageUnavailableError("the database is busy"), 503, "storage-unavailable"),
        (StorageFullError("the disk is full"), 507, "storage-full"),
        (StorageError("the database refuses"), 500, "storage-failed"),
        (StoredDataError("it cannot be read"), 500, "storage-failed"),
        (TracingBusyError("busy"), 503, "busy"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_store_refuses_is_a_problem(error: Exception, status: int, slug: str) -> None:
    with TestClient(create_app(Settings(), planner=FakePlanner(failure=error))) as api:
        response = api.post("/api/v1/plans", json={**MODEL, **HARDWARE})

    problem = check_problem(response, status=status, slug=slug, instance="/api/v1/plans")
    assert problem["detail"] == str(error)


def test_a_path_that_answers_several_methods_names_all_of_them(api: TestClient) -> None:
    assert api.put("/api/v1/measurements/x").headers["allow"] == "GET, DELETE"
