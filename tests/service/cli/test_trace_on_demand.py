"""Models nobody has traced, from the command line: plans and estimates trace them, modules of one's own too."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.profiler.trace import hostile
from whatfits.estimator import estimate_run
from whatfits.estimator.catalog.config_models import keep_facts
from whatfits.estimator.profile.config_text import canonical_config
from whatfits.estimator.specs import RunSpec
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.events import Alloc, Trace
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.service.app import create_app
from whatfits.service.cli import main
from whatfits.service.domain.estimator_planner import EstimatorPlanner
from whatfits.service.kept_traces import compile_class, keep
from whatfits.service.settings import Settings
from whatfits.service.trace_limits import TraceLimits

CONFIG = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "vocab_size": 128,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAN = {"hardware": "a100-80gb-sxm", "seq_len": 64, "optimizers": ["adamw"], "limit": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a config, a module and a store of profiles."""
    place = tmp_path_factory.mktemp("own")
    (place / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(hostile.__file__, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHATFITS_PROFILES", str(place / "profiles"))
        patch.chdir(place)
        yield place


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


def answer_without_time(plan: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name != "elapsed_seconds"}


@pytest.fixture(scope="module")
def plan(folder: Path) -> dict[str, Any]:
    """The plan of a model nobody had traced, over REST."""
    planner = EstimatorPlanner(TraceLimits(timeout_seconds=200))
    with TestClient(create_app(Settings(), planner=planner)) as api:
        response = api.post("/api/v1/plans", json={"model": CONFIG, **PLAN})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_plan_on_demand_compiles_what_every_candidate_needs(plan: dict[str, Any]) -> None:
    assert plan["candidates"]
    for candidate in plan["candidates"]:
        assert candidate["estimate"]["provenance"]["profile"].startswith("gpt2lmheadmodel-")
        assert "only" not in candidate["estimate"]["provenance"]["profile"]


def test_the_same_plan_needs_no_child_again(plan: dict[str, Any]) -> None:
    planner = EstimatorPlanner(TraceLimits(timeout_seconds=0.01))
    with TestClient(create_app(Settings(), planner=planner)) as api:
        again = api.post("/api/v1/plans", json={"model": CONFIG, **PLAN})

    assert answer_without_time(again.json()) == answer_without_time(plan)


def test_the_command_line_answers_from_the_same_store(
    plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--gpus", "a100-80gb-sxm", "--seq-len", "64", "--optimizer", "adamw", "--limit", "3"]

    assert run("plan", "config.json", *options, "--json") == 0

    said = capsys.readouterr()
    assert answer_without_time(json.loads(said.out)) == answer_without_time(plan)
    assert said.err == ""


class Altered:
    """A child whose libraries allocate something else for eleven sequences."""

    def __init__(self) -> None:
        self.stack = running_stack()

    def trace(self, dims: Dims, options: StepOptions) -> Trace:
        found = trace_micro_batch(dims, options)
        if dims["b"] == 11:
            tokens = found.parts["forward"]
            place, first = next((i, token) for i, token in enumerate(tokens) if isinstance(token, Alloc))
            tokens[place] = replace(first, nbytes=first.nbytes + 512)
        return found


def test_a_class_that_differs_from_a_direct_trace_answers_nothing_else(folder: Path) -> None:
    """And the answer of the direct trace says why it is one."""
    config = {**CONFIG, "vocab_size": 100}
    text = canonical_config(config)
    facts = describe(text)
    keep_facts(text, facts.to_json())
    options = StepOptions(architecture=facts.architecture, config=text)

    produced, _ = compile_class(Altered(), options, facts, {"b": 11, "s": 208})  # type: ignore[arg-type]  # a fake
    keep(produced, running_stack())

    assert str(produced.fallback).startswith("the compiled class differs from a direct trace at ")
    training = {"micro_batch_size": 11, "seq_len": 208}
    run_spec = {"model": config, "training": training, "hardware": {"gpu": "a100-80gb-sxm"}}
    provenance = estimate_run(RunSpec.model_validate(run_spec)).provenance
    assert provenance.profile.endswith("-only_b11_s208")
    assert any(str(produced.fallback) in sentence for sentence in provenance.assumptions)


def test_a_module_of_ones_own_is_traced_and_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("trace", "python:hostile:good", "--seq-len", "16", "--micro-batch-size", "2", "--json") == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["saved_to"] is None
    assert answer["fallback"] is None
    assert all(point["num_different_events"] == 0 for point in answer["held_out"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trace", "python:hostile:breaks"), "RuntimeError: forward is broken; accepted: "),
        (("trace", "python:hostile:allocates", "--memory-gib", "2"), "more than the 2 GiB it may have"),
        (("trace", "python:hostile:leaves"), "the child ended with status 0"),
        (("trace", "python:nowhere:good"), "there is no module nowhere"),
        (("plan", "python:hostile:good", "--gpus", "a100-80gb-sxm"), "for `whatfits trace` alone"),
        (("trace", "broken.json"), "broken.json is not JSON"),
        (("trace", "nested.json"), "nested.json is nested too deeply"),
        (("trace", "nan.json"), "model.x: 'nan' is not accepted; accepted: JSON: a finite number"),
        (("trace", "deep.json"), "model.num_hidden_layers: 1000000 is not accepted; accepted: "),
        (("trace", "missing.json"), "missing.json cannot be read"),
    ],
)
def test_what_cannot_be_traced_exits_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    (folder / "broken.json").write_text("{")
    (folder / "nested.json").write_text("[" * 50_000)
    (folder / "nan.json").write_text('{"model_type": "gpt2", "x": NaN}')
    (folder / "deep.json").write_text('{"model_type": "mistral", "num_hidden_layers": 1000000}')

    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
