"""Filling in what a question leaves open."""

from typing import Any

import pytest

from tests.factories import make_config, make_plan_request, make_run
from whatfits.estimator.catalog import resolve_plan_request, resolve_run
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.memory.optimizers.registry import OPTIMIZERS
from whatfits.estimator.specs import OptimizerName, RunSpec, require_supported_request
from whatfits.estimator.specs.layerwise import IN_BACKWARD_OPTIMIZERS, WHOLE_STEP_OPTIMIZERS
from whatfits.estimator.specs.low_rank import QUANTISED_OPTIMIZERS, RANKED_OPTIMIZERS


def test_names_become_those_of_the_catalog() -> None:
    resolved = resolve_run(make_run(model="LLaMA-13B", hardware={"gpu": "A100-SXM4-80GB"}))
    assert (resolved.run.model, resolved.run.hardware.gpu) == ("llama-1-13b", "a100-80gb-sxm")


def test_a_config_stays_in_the_echo() -> None:
    assert resolve_run(make_run(model=make_config())).run.model == make_config()


@pytest.mark.parametrize(("longest", "expected"), [(1024, 1024), (2048, 2048), (131072, 2048)])
def test_sequence_length_defaults_to_2048_or_the_models_maximum(longest: int, expected: int) -> None:
    run = RunSpec.model_validate(
        {"model": make_config(max_position_embeddings=longest), "hardware": {"gpu": "a40"}}
    )
    assert resolve_run(run).run.training.seq_len == expected


@pytest.mark.parametrize(
    ("parallelism", "expected"),
    [
        ({}, (8, 1, 0)),
        ({"gradient_as_bucket_view": True}, (8, 1, 0)),
        ({"dp_shard_degree": 8}, (1, 8, 3)),
        ({"dp_shard_degree": 4}, (2, 4, 3)),
        ({"zero_stage": 3}, (1, 8, 3)),
        ({"zero_stage": 1}, (1, 8, 1)),
        ({"tp_degree": 2}, (4, 1, 0)),
        ({"dp_replicate_degree": 2, "tp_degree": 4}, (2, 1, 0)),
    ],
)
def test_gpus_nobody_claims_become_data_parallel(
    parallelism: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    axes = resolve_run(make_run(parallelism=parallelism, hardware={"num_gpus": 8})).run.parallelism
    assert (axes.dp_replicate_degree, axes.dp_shard_degree, axes.zero_stage) == expected
    assert axes.world_size == 8


@pytest.mark.parametrize(("num_gpus", "expected"), [(1, 1), (4, 4), (8, 8), (32, 8)])
def test_gpus_per_node_defaults_to_8_or_all_of_fewer(num_gpus: int, expected: int) -> None:
    assert resolve_run(make_run(hardware={"num_gpus": num_gpus})).run.hardware.gpus_per_node == expected


def test_resolving_twice_changes_nothing() -> None:
    once = resolve_run(
        make_run(training={"optimizer": {"name": "galore_adamw_8bit"}}, hardware={"num_gpus": 8})
    )
    again = resolve_run(RunSpec.model_validate_json(once.run.model_dump_json()))
    assert again.run == once.run


def test_an_optimizer_fused_into_backward_is_layerwise_unless_told_otherwise() -> None:
    lomo = {"optimizer": {"name": "lomo"}}
    assert resolve_run(make_run(training=lomo)).run.training.layerwise_update is True
    with pytest.raises(InputError, match="lomo updates each parameter inside the backward pass"):
        resolve_run(make_run(training={**lomo, "layerwise_update": False}))


@pytest.mark.parametrize("name", [OptimizerName(name) for name in OPTIMIZERS])
def test_rules_and_registry_agree_on_who_has_rank_and_blocks(name: OptimizerName) -> None:
    facts = OPTIMIZERS[name]
    optimizer = resolve_run(make_run(training={"optimizer": {"name": name}})).run.training.optimizer
    assert (name in RANKED_OPTIMIZERS) == facts.has_rank == (optimizer.rank is not None)
    assert (name in QUANTISED_OPTIMIZERS) == facts.has_block_size == (optimizer.block_size is not None)
    assert (name in IN_BACKWARD_OPTIMIZERS) == facts.layerwise_only
    assert (name in WHOLE_STEP_OPTIMIZERS) == (not facts.layerwise_possible)


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("galore_adamw", "llama-7b", 1024),
        ("galore_adamw", "llama-60m", 128),
        ("apollo", "llama-7b", 256),
        ("apollo_mini", "llama-7b", 1),
    ],
)
def test_rank_defaults_to_that_of_the_paper(name: str, model: str, expected: int) -> None:
    run = make_run(model=model, training={"optimizer": {"name": name}})
    assert resolve_run(run).run.training.optimizer.rank == expected


def test_a_plan_request_takes_the_short_form_of_hardware() -> None:
    resolved = resolve_plan_request(make_plan_request(model="llama-13b", hardware="8xA100-80GB"))
    assert (resolved.hardware.gpu, resolved.hardware.num_gpus, resolved.seq_len) == ("a100-80gb-sxm", 8, 2048)
    assert resolved.request.hardware == resolved.hardware
    assert resolved.assumptions[0].startswith("A100-80GB is read as a100-80gb-sxm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware": "8xa100"}, "hardware: 'a100' comes with 40 GB and 80 GB"),
        ({"ranks": [64, 1024]}, "ranks: rank 1024 is above hidden_size 512"),
        (
            {"hardware": "8xh100", "global_batch_size": 12},
            "global_batch_size: global_batch_size 12 does not divide over 8 data-parallel GPUs",
        ),
        (
            {"hardware": {"gpu": "h100", "num_gpus": 12, "gpus_per_node": 8}},
            "hardware.gpus_per_node: gpus_per_node 8",
        ),
    ],
)
def test_a_plan_request_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_plan_request(make_plan_request(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precisions": ["bf16", "fp8"]},
            "precisions: fp8 is not modelled yet; accepted: bf16, bf16_master, bf16_mixed, fp16_mixed, fp32",
        ),
        ({"frameworks": ["megatron"]}, "frameworks: megatron is not modelled yet; accepted: fsdp2, pytorch"),
        ({"objective": "cost"}, "objective: cost is not modelled yet; accepted: memory, throughput"),
    ],
)
def test_a_plan_request_that_is_not_modelled_says_what_is(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        require_supported_request(make_plan_request(**changes))
    assert str(caught.value) == message
