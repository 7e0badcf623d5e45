"""Which profile a question falls into."""

import pytest

from tests.factories import make_model, make_training
from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import choose_stack, profile_key
from whatfits.estimator.profile import DEFAULT_STACK, ProfileKey


def key(micro_batch_size: int = 2, **config: object) -> ProfileKey:
    training = make_training(micro_batch_size=micro_batch_size, activation_checkpointing="full")
    return profile_key(make_model(num_hidden_layers=config.pop("num_hidden_layers", 4), **config), training)


def key_of(**training: object) -> ProfileKey:
    return profile_key(make_model(num_hidden_layers=4), make_training(**training))


@pytest.mark.parametrize(("kv_heads", "name"), [(1, "one"), (2, "grouped"), (4, "full")])
def test_key_value_heads_name_the_class(kv_heads: int, name: str) -> None:
    assert key(num_key_value_heads=kv_heads).kv_heads == name


def test_micro_batch_tying_and_checkpointing_name_the_class() -> None:
    assert [key(b).micro_batch for b in (1, 2, 99)] == ["one", "many", "many"]
    assert [key(tie_word_embeddings=tied).tied for tied in (True, False)] == [True, False]
    assert key().checkpointing == "full"


@pytest.mark.parametrize(
    ("training", "precision"),
    [
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "bf16_mixed"}, "bf16_mixed"),
        ({"precision": "fp16_mixed"}, "fp16_mixed"),
        ({"precision": "bf16_master"}, "bf16"),
        ({"precision": "bf16_mixed", "framework": "fsdp2"}, "bf16"),
        ({"precision": "fp32", "framework": "fsdp2"}, "fp32"),
    ],
)
def test_the_class_has_the_dtypes_that_the_module_computes_in(
    training: dict[str, object], precision: str
) -> None:
    assert key_of(**training).precision == precision


def test_attention_mask_dropout_and_loss_name_the_class() -> None:
    asked = ("auto", "sdpa", "flash_attention_2", "eager")
    assert [key_of(attention=name).attention for name in asked] == ["sdpa", "sdpa", "sdpa", "eager"]
    assert [key_of(packed_sequences=packed).mask for packed in (False, True)] == ["none", "packed"]
    assert [key_of(dropout=p).dropout for p in (0.0, 0.1)] == [False, True]
    assert key_of(loss="fused_linear").loss == "fused_linear"
    assert [key_of(seq_len=n).sequence for n in (128, 500)] == ["eights", "other"]
    assert (
        key_of(activation_checkpointing="selective", checkpointing_policy="every_2").checkpointing
        == "every_2"
    )


@pytest.mark.parametrize(
    ("gpu", "training", "kernel"),
    [
        ("h100-80gb-sxm", {}, "cudnn"),
        ("h100-80gb-sxm", {"attention": "sdpa", "precision": "fp16_mixed"}, "cudnn"),
        ("h100-80gb-sxm", {"precision": "fp32"}, "flash"),
        ("h100-80gb-sxm", {"attention": "eager"}, "flash"),
        ("h100-80gb-sxm", {"attention": "flash_attention_2"}, "flash"),
        ("a100-80gb-sxm", {}, "flash"),
        ("rtx-5090", {}, "flash"),
    ],
)
def test_the_gpu_names_the_kernel_that_is_tried_first(
    gpu: str, training: dict[str, object], kernel: str
) -> None:
    model = make_model(num_hidden_layers=4)
    assert profile_key(model, make_training(**training), find_gpu(gpu)).first_kernel == kernel
    assert key_of(**training).first_kernel == "flash"


def test_adapters_are_named_by_method_and_sorted_targets_whatever_their_rank() -> None:
    key = key_of(method="dora", adapter={"rank": 3, "targets": ["v_proj", "down_proj"]})
    assert key.adapter == "dora:down_proj,v_proj"


def test_too_shallow_models_are_refused_with_what_is_covered() -> None:
    with pytest.raises(UnsupportedError, match="3 layers are fewer"):
        key(num_hidden_layers=3)


def test_stack_is_chosen_by_the_versions_asked_for() -> None:
    assert choose_stack(None) == choose_stack({}) == choose_stack({"torch": "2.13"}) == DEFAULT_STACK
    with pytest.raises(UnsupportedError, match="no profile was traced"):
        choose_stack({"torch": "1.13"})
