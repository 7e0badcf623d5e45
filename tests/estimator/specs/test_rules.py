"""Every cross-field rule, by the numbers in its message; what is valid but not modelled; what is assumed."""

from contextlib import nullcontext
from typing import Any

import pytest

from tests.factories import make_config, make_model, make_run
from whatfits.estimator.catalog import find_gpu, resolve_run
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs import require_kernel, require_supported

EIGHT = {"num_gpus": 8}

BROKEN = [
    (
        {"model": "llama-13b", "parallelism": {"tp_degree": 3}, "hardware": {"num_gpus": 3}},
        "parallelism.tp_degree: tp_degree 3 does not divide 40 attention heads",
    ),
    (
        {"model": "llama-3-8b", "parallelism": {"tp_degree": 16}, "hardware": {"num_gpus": 16}},
        "parallelism.tp_degree: tp_degree 16 does not divide 8 key-value heads",
    ),
    (
        {"parallelism": {"dp_replicate_degree": 4}, "hardware": EIGHT},
        (
            "parallelism: dp_replicate_degree 4 x dp_shard_degree 1 x tp_degree 1 x pp_degree 1 x cp_degree 1 = 4, but "
            "num_gpus is 8"
        ),
    ),
    (
        {"parallelism": {"tp_degree": 3}, "hardware": EIGHT},
        (
            "parallelism: dp_replicate_degree 1 x dp_shard_degree 1 x tp_degree 3 x pp_degree 1 x cp_degree 1 = 3, but "
            "num_gpus is 8"
        ),
    ),
    (
        {"parallelism": {"sequence_parallel": True}},
        "parallelism.sequence_parallel: sequence_parallel splits over the tensor-parallel group, but tp_degree is 1",
    ),
    (
        {"parallelism": {"pp_degree": 16}, "hardware": {"num_gpus": 16}},
        "parallelism.pp_degree: pp_degree 16 is above 8 layers",
    ),
    (
        {"training": {"seq_len": 127}, "parallelism": {"cp_degree": 2}, "hardware": {"num_gpus": 2}},
        "training.seq_len: 2 sequence parts do not divide seq_len 127",
    ),
    (
        {"parallelism": {"ep_degree": 2}},
        "parallelism.ep_degree: ep_degree 2 spreads experts, and galore-llama-60m has none",
    ),
    (
        {"parallelism": {"dp_shard_degree": 8, "zero_stage": 0}, "hardware": EIGHT},
        "parallelism.zero_stage: dp_shard_degree is 8, but zero_stage 0 shards nothing",
    ),
    (
        {"parallelism": {"dp_replicate_degree": 8, "zero_stage": 3}, "hardware": EIGHT},
        "parallelism.zero_stage: zero_stage 3 shards over dp_shard_degree ranks, but that is 1",
    ),
    (
        {"hardware": {"num_gpus": 12, "gpus_per_node": 8}},
        "hardware.gpus_per_node: gpus_per_node 8 does not divide 12 GPUs",
    ),
    (
        {"hardware": {"memory_cap_bytes": 90_000_000_000}},
        "hardware.memory_cap_bytes: memory_cap_bytes 90000000000 is above the 84987084800 bytes of a100-80gb-sxm",
    ),
    (
        {"training": {"optimizer": {"name": "galore_adamw", "rank": 513}}},
        "training.optimizer.rank: rank 513 is above hidden_size 512",
    ),
    (
        {"training": {"optimizer": {"name": "adamw", "rank": 8}}},
        "training.optimizer.rank: rank 8 was given, but adamw has no low-rank projection",
    ),
    (
        {"training": {"optimizer": {"name": "sgd", "projection_update_interval": 200}}},
        (
            "training.optimizer.projection_update_interval: projection_update_interval 200 was given, but sgd has no "
            "low-rank projection"
        ),
    ),
    (
        {"training": {"optimizer": {"name": "apollo_mini", "rank": 4}}},
        "training.optimizer.rank: rank 4 was given, but apollo_mini is the rank-1 form of apollo",
    ),
    (
        {"training": {"optimizer": {"name": "adamw", "block_size": 256}}},
        "training.optimizer.block_size: block_size 256 was given, but adamw keeps no 8-bit states",
    ),
    (
        {"training": {"optimizer": {"name": "adamw_8bit", "block_size": 100}}},
        "training.optimizer.block_size: 100 is not accepted; accepted: 64, 128, 256, 512, 1024, 2048, 4096",
    ),
    (
        {"training": {"optimizer": {"name": "apollo", "implementation": "fused"}}},
        "training.optimizer.implementation: apollo has no fused implementation",
    ),
    (
        {"training": {"optimizer": {"name": "adamw", "implementation": "whatfits"}}},
        "training.optimizer.implementation: whatfits.optim_impls has no second form of adamw",
    ),
    (
        {"training": {"layerwise_update": True, "grad_accum_steps": 2}},
        "training.layerwise_update: grad_accum_steps is 2, and a freed gradient cannot accumulate",
    ),
    (
        {"training": {"layerwise_update": True, "gradient_clipping": True}},
        "training.layerwise_update: gradient_clipping needs the norm of all gradients",
    ),
    (
        {"training": {"layerwise_update": True}, "hardware": EIGHT},
        "training.layerwise_update: dp_replicate_degree is 8, and DDP reduces gradients after",
    ),
    (
        {"training": {"adapter": {"rank": 8}}},
        "training.adapter: an adapter was given, but method full trains all",
    ),
    (
        {"training": {"activation_checkpointing": "selective", "checkpointing_policy": "every_1"}},
        "training.checkpointing_policy: 'every_1' is not accepted; accepted: ops, or every_2, every_3 and so on",
    ),
    (
        {"training": {"layerwise_update": True, "loop": {"set_grads_to_none": False}}},
        "training.layerwise_update: loop.set_grads_to_none is false, which keeps the gradients",
    ),
    (
        {"training": {"method": "lora", "adapter": {"targets": ["q_porj"]}}},
        "training.adapter.targets[0]: 'q_porj' is not accepted; accepted: q_proj, k_proj",
    ),
    (
        {"training": {"method": "lora", "adapter": {"targets": ["q_proj", "all-linear"]}}},
        "training.adapter.targets[1]: 'all-linear' is not accepted",
    ),
    (
        {"training": {"method": "lora", "adapter": {"targets": ["q_proj", "q_proj"]}}},
        "training.adapter.targets: a layer is named twice",
    ),
    (
        {"training": {"method": "dora", "adapter": {"rank": 513}}},
        "training.adapter.rank: rank 513 is above hidden_size 512",
    ),
    (
        {"training": {"checkpointing_policy": "every_2"}},
        "training.checkpointing_policy: a policy was given, but activation_checkpointing is none",
    ),
    (
        {"model": make_config(num_key_value_heads=3)},
        "model.num_key_value_heads: num_key_value_heads 3 does not divide 4 attention heads",
    ),
    ({"model": make_config(head_dim=15)}, "model.head_dim: head_dim 15 is odd"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[message.split(";")[0] for _, message in BROKEN])
def test_a_broken_rule_names_field_and_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_run(make_run(**changes))
    assert str(caught.value).startswith(message)
    assert not isinstance(caught.value, UnsupportedError)


UNSUPPORTED = [
    ({"training": {"framework": "deepspeed"}}, "training.framework: deepspeed is not modelled yet"),
    (
        {"training": {"precision": "fp8"}},
        "training.precision: fp8 is not modelled yet; accepted: bf16, bf16_master",
    ),
    (
        {"training": {"layerwise_update": True, "precision": "bf16_master"}},
        "training.layerwise_update: bf16_master copies all gradients before the update",
    ),
    (
        {"training": {"layerwise_update": True, "precision": "fp16_mixed"}},
        "training.layerwise_update: fp16_mixed unscales all gradients before the update",
    ),
    (
        {"training": {"precision": "bf16_master", "loop": {"set_grads_to_none": False}}},
        "training.loop.set_grads_to_none: bf16_master frees each gradient once it is copied to fp32",
    ),
    (
        {"training": {"grad_accum_steps": 2, "loop": {"keep_outputs": "step"}}},
        "training.loop.keep_outputs: outputs kept over 2 micro-batches are not modelled yet",
    ),
    (
        {"training": {"loss": "chunked", "loop": {"keep_outputs": "step"}}},
        "training.loop.keep_outputs: the outputs of a chunked loss are not modelled yet",
    ),
    (
        {"training": {"method": "lora", "optimizer": {"name": "galore_adamw"}}},
        "training.optimizer.name: galore_adamw projects whole weight matrices, and of galore-llama-60m only adapters",
    ),
    (
        {"training": {"method": "lora"}, "parallelism": {"dp_shard_degree": 8}, "hardware": EIGHT},
        "training.method: lora adapters of sharded parameters are not modelled yet",
    ),
    (
        {"training": {"framework": "fsdp2", "precision": "bf16_mixed"}},
        "training.framework: bf16_mixed is a cast when shards are gathered under fsdp2, and nothing is sharded",
    ),
    ({"training": {"compile": True}}, "training.compile: true is not modelled yet; accepted: false"),
    ({"training": {"image_size": 224}}, "training.image_size: 224 is not modelled yet"),
    ({"training": {"seq_len": 1}}, "training.seq_len: a sequence of one token has nothing to predict"),
    ({"parallelism": {"tp_degree": 8}, "hardware": EIGHT}, "parallelism.tp_degree: 8 is not modelled yet"),
    ({"parallelism": {"pp_degree": 8}, "hardware": EIGHT}, "parallelism.pp_degree: 8 is not modelled yet"),
    ({"parallelism": {"cp_degree": 8}, "hardware": EIGHT}, "parallelism.cp_degree: 8 is not modelled yet"),
    (
        {"parallelism": {"dp_shard_degree": 8, "zero_stage": 2}, "hardware": EIGHT},
        "parallelism.zero_stage: 2 is not modelled yet; accepted: 0, 3",
    ),
    ({"parallelism": {"offload": "optimizer"}}, "parallelism.offload: optimizer is not modelled yet"),
    (
        {"parallelism": {"reshard_after_forward": False}},
        "parallelism.reshard_after_forward: false is not modelled",
    ),
    (
        {"parallelism": {"dp_shard_degree": 4}, "hardware": EIGHT},
        "parallelism.dp_replicate_degree: 2 replicas of 4 shards are not modelled yet",
    ),
    (
        {
            "training": {"layerwise_update": True},
            "parallelism": {"dp_shard_degree": 8},
            "hardware": EIGHT,
        },
        "training.layerwise_update: layerwise_update of sharded parameters is not modelled yet",
    ),
    (
        {"training": {"optimizer": {"name": "apollo"}}, "parallelism": {"zero_stage": 3}, "hardware": EIGHT},
        "training.optimizer.name: apollo takes whole matrices",
    ),
    (
        {"training": {"optimizer": {"name": "mezo"}}},
        "training.optimizer.name: mezo has no backward pass, and every profile of a run has one",
    ),
    ({"hardware": {"gpu": "b100"}}, "hardware.gpu: no device report of the usable memory of B100 is known"),
    ({"hardware": {"gpu": "t4"}}, "hardware.gpu: T4 (7.5) has no bf16 arithmetic"),
]


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED, ids=[message for _, message in UNSUPPORTED])
def test_a_valid_run_that_is_not_modelled_says_what_is(changes: dict[str, Any], message: str) -> None:
    resolved = resolve_run(make_run(**changes))
    with pytest.raises(UnsupportedError) as caught:
        require_supported(resolved.run, resolved.model, resolved.gpu)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hardware": EIGHT},
        {"parallelism": {"zero_stage": 3}, "hardware": EIGHT},
        {"parallelism": {"dp_shard_degree": 8}, "hardware": EIGHT, "training": {"framework": "fsdp2"}},
        {"hardware": {"num_gpus": 4, "gpus_per_node": 8}},
        {
            "training": {
                "layerwise_update": True,
                "optimizer": {"name": "galore_adamw_8bit", "block_size": 2048},
            }
        },
        {"training": {"attention": "flash_attention_2", "activation_checkpointing": "full"}},
        {"training": {"attention": "eager", "precision": "fp32", "dropout": 0.1}},
        {"training": {"precision": "bf16_master", "gradient_clipping": True}},
        {"training": {"precision": "fp16_mixed", "attention": "eager"}, "hardware": {"gpu": "t4"}},
        {"training": {"method": "qlora", "adapter": {"rank": 8}, "loss": "chunked"}},
        {"training": {"method": "dora", "packed_sequences": True, "activation_checkpointing": "selective"}},
        {
            "training": {
                "loop": {"set_grads_to_none": False, "keep_outputs": "step", "empty_cache_each_step": True}
            }
        },
        {
            "training": {"framework": "fsdp2", "precision": "bf16_mixed"},
            "parallelism": {"dp_shard_degree": 8},
            "hardware": EIGHT,
        },
    ],
)
def test_what_is_modelled_passes(changes: dict[str, Any]) -> None:
    resolved = resolve_run(make_run(**changes))
    require_supported(resolved.run, resolved.model, resolved.gpu)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"training": {"seq_len": 4096}}, "seq_len 4096 is beyond the 2048 positions"),
        (
            {"model": "llama-3-8b", "training": {"optimizer": {"name": "galore_adamw", "rank": 2048}}},
            "rank 2048 is above 1024, the smallest side of a matrix; galore_adamw clips the rank",
        ),
        (
            {"model": "llama-3-8b", "training": {"optimizer": {"name": "apollo", "rank": 2048}}},
            "rank 2048 is above 1024, the smallest side of a matrix; apollo does not clip it",
        ),
        ({"hardware": {"gpu": "mi300x"}}, "Kernels and the allocator are modelled as under CUDA"),
        ({"hardware": {"gpu": "rtx 4090"}}, "The memory total of RTX 4090 is an estimate"),
        ({"hardware": {"gpu": "h100"}}, "h100 is read as h100-80gb-sxm"),
    ],
)
def test_what_a_run_relies_on_is_said(changes: dict[str, Any], sentence: str) -> None:
    assumptions = resolve_run(make_run(**changes)).assumptions
    assert any(assumption.startswith(sentence) for assumption in assumptions)


@pytest.mark.parametrize(("gpu", "kernel", "refused"), [("t4", "flash", True), ("t4", "efficient", False), ("t4", "eager", False),
                                                         ("h100-80gb-sxm", "flash", False)])  # fmt: skip
def test_a_kernel_that_the_gpu_lacks_is_refused(gpu: str, kernel: str, refused: bool) -> None:
    expected = (
        pytest.raises(UnsupportedError, match="no flash attention kernel") if refused else nullcontext()
    )
    with expected:
        require_kernel(kernel, make_model(), find_gpu(gpu))


@pytest.mark.parametrize(("head_dim", "kernel", "refused"), [(20, "flash", True), (20, "efficient", True), (20, "eager", False), (20, "math", False),
                                                              (264, "flash", True), (264, "efficient", False), (256, "flash", False)])  # fmt: skip
def test_heads_that_a_fused_kernel_would_pad_are_refused(head_dim: int, kernel: str, refused: bool) -> None:
    expected = (
        pytest.raises(UnsupportedError, match=f"head_dim {head_dim} does not run")
        if refused
        else nullcontext()
    )
    with expected:
        require_kernel(kernel, make_model(head_dim=head_dim), find_gpu("h100-80gb-sxm"))


@pytest.mark.parametrize(
    ("method", "adapter", "targets"),
    [
        ("lora", None, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("dora", {"rank": 4}, ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("qlora", None, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("lora", {"targets": ["all-linear"]}, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("lora", {"targets": ["v_proj"]}, ("v_proj",)),
    ],
)  # fmt: skip
def test_an_adapter_is_filled_in(
    method: str, adapter: dict[str, Any] | None, targets: tuple[str, ...]
) -> None:
    filled = resolve_run(make_run(training={"method": method, "adapter": adapter})).run.training.adapter
    assert filled is not None
    assert filled.targets == targets


def test_selective_checkpointing_keeps_single_operations_unless_told_otherwise() -> None:
    training = {"activation_checkpointing": "selective"}
    policies = [
        resolve_run(make_run(training={**training, **more})).run.training.checkpointing_policy
        for more in ({}, {"checkpointing_policy": "every_3"})
    ]
    assert policies == ["ops", "every_3"]


def test_a_plain_run_assumes_nothing() -> None:
    assert resolve_run(make_run()).assumptions == ()
