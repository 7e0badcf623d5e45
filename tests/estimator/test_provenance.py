"""What an answer says about itself."""

from typing import Any

import pytest

from tests.estimator.memory.steps import SMALL, make_step
from tests.factories import make_gpu, make_model, make_run, make_training
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.provenance import loop_assumption, provenance_of
from whatfits.estimator.specs import Basis, GpuSpec


def with_gpu(step: StepMemory, gpu: GpuSpec) -> StepMemory:
    return StepMemory(table=step.table, optimizer=step.optimizer, gpu=gpu)


def test_profile_stack_and_kernel_are_named() -> None:
    step = make_step()
    found = provenance_of(make_run(), step, ("a note.",))

    assert found.basis is Basis.ANALYTICAL
    assert (found.profile, found.stack, found.kernel) == (step.table.key.slug, step.table.stack, "flash")
    assert found.assumptions[:2] == (
        "a note.",
        "Training loop: labels passed, no attention mask, only the loss kept, gradients set to None after the step.",
    )


def test_the_loop_is_said_as_it_was_asked_for() -> None:
    loop = {"set_grads_to_none": False, "keep_outputs": "step", "empty_cache_each_step": True}
    training = make_training(loop=loop, gradient_clipping=True, packed_sequences=True)

    assert loop_assumption(training) == (
        "Training loop: labels passed, positions that restart in each document, outputs kept until the step is over, "
        "gradients kept and filled with zeros, the cache emptied before each step, gradients clipped by "
        "torch.nn.utils.clip_grad_norm_."
    )


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"precision": "bf16_master"}, "bf16_master: fp32 copies of all trainable weights"),
        ({"precision": "fp16_mixed"}, "fp16_mixed: the loss is scaled"),
        ({"precision": "bf16_mixed", "framework": "fsdp2"}, "bf16_mixed under fsdp2: fp32 shards"),
        ({"attention": "flash_attention_2"}, "flash_attention_2 is answered with torch's own flash kernel"),
        ({"attention": "eager"}, "Step time does not know eager attention"),
        (
            {"method": "lora", "adapter": {"rank": 4, "targets": ["q_proj"]}},
            f"lora of rank 4 on q_proj: {make_model(**SMALL).num_parameters:,} trainable parameters in 16 bits",
        ),
    ],
)
def test_what_the_training_is_taken_to_mean_is_said(training: dict[str, Any], sentence: str) -> None:
    """The step is the plain one, whose trainable parameters are all of the model's."""
    found = provenance_of(make_run(training=training), make_step(), ())

    assert any(text.startswith(sentence) for text in found.assumptions), found.assumptions


def test_sharding_is_an_assumption() -> None:
    step = make_step(placement=Placement.FSDP, shard_degree=2)

    assert any(text.startswith("FSDP") for text in provenance_of(make_run(), step, ()).assumptions)


def test_an_estimated_total_is_an_assumption_unless_capped() -> None:
    step = with_gpu(make_step(), make_gpu(total_bytes_is_estimate=True))
    capped = make_run(hardware={"memory_cap_bytes": 10**9})

    assert any(step.gpu.id in text for text in provenance_of(make_run(), step, ()).assumptions)
    assert not any(step.gpu.id in text for text in provenance_of(capped, step, ()).assumptions)
