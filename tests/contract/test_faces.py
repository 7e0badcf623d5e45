"""The command line, the REST API and the page give the same numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from whatfits.estimator import estimate_run, plan_runs
from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec
from whatfits.estimator.units import format_bytes
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings

QUESTIONS = {
    "headline": ("llama-13b", "8xa100-80gb", 2048),
    "one consumer card": ("llama-7b", "rtx-4090", 512),
    "grouped heads on two machines": ("llama-3-70b", "2x8xh100", 4096),
}


def _command(*arguments: str, given: str | None = None) -> Any:
    """What `whatfits ... --json` prints, from a process of its own."""
    whatfits = Path(sys.executable).with_name("whatfits")
    done = subprocess.run(
        [whatfits, *arguments, "--json"], input=given, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_plan_is_the_same_on_every_face(question: str) -> None:
    model, gpus, seq_len = QUESTIONS[question]
    asked = {"model": model, "hardware": gpus, "seq_len": seq_len}
    direct = _timeless(plan_runs(PlanRequest.model_validate(asked)))
    printed = _command("plan", model, "--gpus", gpus, "--seq-len", str(seq_len))
    with TestClient(build_server_app(Settings())) as client:
        answered = client.post("/api/v1/plans", json=asked).json()
        page = client.get("/", params={"model": model, "gpus": gpus, "seq_len": seq_len}).text
    assert _timeless(Plan.model_validate(printed)) == direct
    assert _timeless(Plan.model_validate(answered)) == direct
    for candidate in direct.candidates:
        assert format_bytes(candidate.estimate.memory.device_bytes.median) in page


@pytest.mark.parametrize("explain", [False, True])
def test_an_estimate_is_the_same_on_every_face(*, explain: bool) -> None:
    spec = {
        "model": "llama-7b",
        "training": {"micro_batch_size": 2, "seq_len": 512, "optimizer": {"name": "apollo", "rank": 128}},
        "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 4},
    }
    direct = estimate_run(RunSpec.model_validate(spec), explain=explain)
    options = ["--explain"] if explain else []
    printed = Estimate.model_validate(_command("estimate", "-", *options, given=json.dumps(spec)))
    with TestClient(build_server_app(Settings())) as client:
        response = client.post("/api/v1/estimates", params={"explain": explain}, json=spec)
        answered = Estimate.model_validate(response.json())
    assert (direct.explanation is not None) is explain
    assert printed == direct
    assert answered == direct


def test_an_opened_candidate_has_the_requested_peak_of_the_plan() -> None:
    plan = plan_runs(PlanRequest.model_validate({"model": "llama-13b", "hardware": "8xa100-80gb"}))
    for candidate in plan.candidates[:3] + plan.candidates[-3:]:
        opened = estimate_run(candidate.spec)
        assert opened.memory.peak_requested_bytes == candidate.estimate.memory.peak_requested_bytes
        assert opened.time == candidate.estimate.time


def _timeless(plan: Plan) -> Plan:
    """The plan without the time it took."""
    return plan.model_copy(update={"elapsed_seconds": 0.0})
