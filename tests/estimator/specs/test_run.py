"""A run as JSON: what parses, what comes back, what is an error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.factories import make_run
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    OptimizerName,
    PlanRequest,
    Precision,
    RunSpec,
    input_errors,
)

DOCUMENTED_RUN = """
{"model": "llama-13b",
 "training": {"method": "full", "framework": "pytorch", "precision": "bf16",
   "micro_batch_size": 2, "seq_len": 2048, "grad_accum_steps": 1,
   "optimizer": {"name": "apollo_mini", "rank": 1, "implementation": "foreach"}, "layerwise_update": false,
   "gradient_clipping": false, "activation_checkpointing": "none", "attention": "auto", "loss": "standard",
   "compile": false},
 "parallelism": {"dp_replicate_degree": 8, "dp_shard_degree": 1, "zero_stage": 0, "tp_degree": 1,
   "sequence_parallel": false, "pp_degree": 1, "cp_degree": 1, "ep_degree": 1},
 "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 8, "gpus_per_node": 8}}
"""


def test_the_documented_run_parses_to_what_it_says() -> None:
    run = RunSpec.model_validate_json(DOCUMENTED_RUN)
    assert run.training.optimizer.name is OptimizerName.APOLLO_MINI
    assert run.parallelism.dp_degree == 8
    given_part = json.loads(DOCUMENTED_RUN)
    echoed = run.model_dump(mode="json", exclude_unset=True)
    assert echoed == given_part


@given(
    name=st.sampled_from(OptimizerName),
    precision=st.sampled_from(Precision),
    checkpointing=st.sampled_from(ActivationCheckpointing),
    seq_len=st.integers(1, 2**31 - 1),
    cap=st.none() | st.integers(1, 2**60),
)
def test_json_round_trip(
    name: OptimizerName,
    precision: Precision,
    checkpointing: ActivationCheckpointing,
    seq_len: int,
    cap: int | None,
) -> None:
    training = {
        "optimizer": {"name": name},
        "precision": precision,
        "activation_checkpointing": checkpointing,
        "seq_len": seq_len,
    }
    run = make_run(training=training, hardware={"memory_cap_bytes": cap})
    assert RunSpec.model_validate_json(run.model_dump_json()) == run


def test_only_model_and_hardware_have_no_default() -> None:
    run = RunSpec.model_validate({"model": "llama-7b", "hardware": {"gpu": "h100"}})
    assert run.training.optimizer.name is OptimizerName.ADAMW
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate({})
    assert [error.field for error in input_errors(caught.value)] == ["model", "hardware"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"seq_len": 0}, "training.seq_len: 0 is not accepted; accepted: greater than or equal to 1"),
        ({"seq_len": "128"}, "training.seq_len: '128' is not accepted; accepted: a valid integer"),
        (
            {"precision": "BF16"},
            (
                "training.precision: 'BF16' is not accepted; accepted: fp32, bf16, bf16_mixed, bf16_master, fp16_mixed, "
                "fp8; did you mean bf16?"
            ),
        ),
        (
            {"optimizer": {"name": "adamw", "rnk": 4}},
            (
                "training.optimizer.rnk: there is no key 'rnk' here; accepted: the keys name, rank, "
                "projection_update_interval, implementation, block_size; did you mean rank?"
            ),
        ),
        ({"optimizer": 5}, "training.optimizer: 5 is not accepted; accepted: an object"),
    ],
)
def test_an_error_names_field_value_and_what_is_accepted(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate({"model": "llama-7b", "hardware": {"gpu": "h100"}, "training": training})
    assert [str(error) for error in input_errors(caught.value)] == [message]


def test_an_unknown_key_suggests_the_one_that_was_meant() -> None:
    with pytest.raises(ValidationError) as caught:
        make_run(training={"optimiser": "adamw"}, hardware={"gpus": 8})
    suggestions = {error.field: error.suggestions for error in input_errors(caught.value)}
    assert suggestions["training.optimiser"] == ("optimizer",)
    assert "num_gpus" in suggestions["hardware.gpus"]


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"model": }'])
def test_broken_json_is_an_input_error(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate_json(text)
    assert [error.field for error in input_errors(caught.value)] == ["(input)"]


def test_a_plan_request_speaks_only_of_the_branch_that_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        PlanRequest.model_validate(
            {"model": "llama-7b", "hardware": {"num_gpus": 8}, "optimizers": ["adam"], "ranks": [0]}
        )
    errors = input_errors(caught.value)
    assert [error.field for error in errors] == ["hardware.gpu", "optimizers[0]", "ranks[0]"]
    assert "adamw" in errors[1].suggestions
