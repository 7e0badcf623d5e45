"""The question in the query string, as an API request and as a command."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from whatfits.estimator.specs import PlanRequest
from whatfits.web.answers import FieldProblem, Problem
from whatfits.web.forms import (
    PlanForm,
    assign_problems,
    build_cli_command,
    build_plan_request,
    read_plan_form,
)


def test_an_empty_query_string_is_the_headline_question() -> None:
    form = read_plan_form(QueryParams(""))

    assert form == PlanForm()
    assert build_plan_request(form) == {
        "model": "LLaMA-13B",
        "hardware": "8xA100-80GB",
        "seq_len": 2048,
        "optimizers": "all",
        "precisions": ["bf16"],
        "objective": "throughput",
    }


def test_every_field_of_the_query_string_reaches_the_request() -> None:
    query = (
        "model=llama-2-7b&gpus=h100&seq_len=4096&global_batch_size=64"
        "&optimizer=adamw&optimizer=apollo&precision=bf16_mixed&objective=memory"
    )

    request = build_plan_request(read_plan_form(QueryParams(query)))

    assert request == {
        "model": "llama-2-7b",
        "hardware": "h100",
        "seq_len": 4096,
        "global_batch_size": 64,
        "optimizers": ["adamw", "apollo"],
        "precisions": ["bf16_mixed"],
        "objective": "memory",
    }
    PlanRequest.model_validate(request)


def test_an_empty_sequence_length_is_left_to_the_api() -> None:
    assert "seq_len" not in build_plan_request(PlanForm(seq_len=""))


@pytest.mark.parametrize("text", ["", "all"])
def test_no_optimizer_and_all_are_the_same(text: str) -> None:
    form = read_plan_form(QueryParams({"optimizer": text} if text else {}))

    assert build_plan_request(form)["optimizers"] == "all"


@given(st.text())
def test_any_text_as_a_number_is_passed_on_for_the_api_to_judge(text: str) -> None:
    request = build_plan_request(PlanForm(seq_len=text, global_batch_size=text))

    if text:
        assert str(request["seq_len"]).lstrip("-") in text or int(text) == request["seq_len"]
    else:
        assert request.keys() == {"model", "hardware", "optimizers", "precisions", "objective"}


def test_the_command_asks_the_same_question() -> None:
    form = PlanForm(
        model="my model; rm", gpus="2x8xh100", global_batch_size="64", optimizers=("adamw", "apollo")
    )

    assert shlex.split(build_cli_command(form)) == [
        *("whatfits", "plan", "my model; rm", "--gpus", "2x8xh100", "--seq-len", "2048"),
        *("--global-batch-size", "64", "--optimizer", "adamw", "--optimizer", "apollo"),
        *("--precision", "bf16", "--objective", "throughput"),
    ]


@pytest.mark.parametrize(
    ("pointer", "field", "expected"),
    [
        ("/model", "model", "model"),
        ("/hardware", "hardware", "gpus"),
        ("/hardware/gpu", "hardware.gpu", "gpus"),
        ("/seq_len", "seq_len", "seq_len"),
        ("/optimizers/0", "optimizers[0]", "optimizers"),
        ("/objective", "objective", "objective"),
        ("/precisions/0", "precisions[0]", "precision"),
        ("/training/seq_len", "training.seq_len", "seq_len"),
        ("/global_batch_size", "global_batch_size", "global_batch_size"),
    ],
)
def test_a_problem_stands_at_its_field(pointer: str, field: str, expected: str) -> None:
    error = FieldProblem(pointer=pointer, field=field, detail="wrong")

    problems = assign_problems(Problem(type="t", title="T", status=422, detail="d", errors=(error,)))

    assert problems.by_field == {expected: ("wrong",)}
    assert problems.sentences == ("wrong",)


def test_what_belongs_to_no_field_is_general() -> None:
    stray = FieldProblem(pointer="/limit", field="limit", detail="stray")

    with_errors = assign_problems(Problem(type="t", title="T", status=422, detail="d", errors=(stray,)))
    without = assign_problems(Problem(type="t", title="T", status=500, detail="down"))

    assert (with_errors.general, with_errors.by_field) == (("stray",), {})
    assert without.sentences == ("down",)
    assert assign_problems(None).sentences == ()
