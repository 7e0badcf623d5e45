"""The model catalog against transformers' own modules, and configs of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_config
from whatfits.estimator.catalog import (
    catalog_config,
    find_model,
    load_models,
    model_argument,
    model_from_config,
    read_model_config,
    resolve_model,
)
from whatfits.estimator.catalog.names import model_name_key
from whatfits.estimator.errors import InputError, UnknownNameError, UnsupportedError
from whatfits.estimator.specs import ModelSpec

MODELS = list(load_models().values())


def real_num_parameters(config: dict[str, Any], architecture: str = "LlamaForCausalLM") -> int:
    """Parameters of the module transformers builds, without memory for them; a tied head counted once."""
    given = {"model_type": "llama", **config}
    with torch.device("meta"):
        module = getattr(transformers, architecture)._from_config(
            transformers.AutoConfig.for_model(given.pop("model_type"), **given)
        )
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameter_counts_are_those_of_the_real_module(model: ModelSpec) -> None:
    assert model.num_parameters == real_num_parameters(catalog_config(model.name), model.architecture)


@given(
    layers=st.integers(1, 4),
    head_dim=st.sampled_from([8, 16, 24]),
    kv_heads=st.integers(1, 4),
    groups=st.integers(1, 3),
    intermediate=st.integers(1, 300),
    vocab=st.integers(1, 500),
    tied=st.booleans(),
    own_head_dim=st.none() | st.sampled_from([10, 32]),
)
def test_parameter_counts_of_any_shape_are_those_of_the_real_module(
    layers: int,
    head_dim: int,
    kv_heads: int,
    groups: int,
    intermediate: int,
    vocab: int,
    tied: bool,
    own_head_dim: int | None,
) -> None:
    config = make_config(
        num_hidden_layers=layers,
        hidden_size=head_dim * kv_heads * groups,
        num_attention_heads=kv_heads * groups,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        head_dim=own_head_dim,
    )
    assert model_from_config(config).num_parameters == real_num_parameters(config)


def test_keys_left_out_take_the_defaults_of_transformers() -> None:
    config = make_config(num_key_value_heads=None, tie_word_embeddings=None, max_position_embeddings=None)
    model, real = model_from_config(config), transformers.LlamaConfig(**config)
    assert (model.num_key_value_heads, model.head_dim) == (real.num_key_value_heads, real.head_dim)
    assert (model.tie_embeddings, model.max_position_embeddings) == (
        real.tie_word_embeddings,
        real.max_position_embeddings,
    )


def test_the_llama_family_comes_first_and_149_models_are_known() -> None:
    names = [model.name for model in MODELS]
    assert len(names) == 149
    assert names[:21] == [
        *(f"galore-llama-{size}" for size in ("60m", "130m", "350m", "1b", "3b", "7b", "13b")),
        *(f"llama-1-{size}" for size in ("7b", "13b", "30b", "65b")),
        *(f"llama-2-{size}" for size in ("7b", "13b", "70b")),
        *(f"llama-3-{size}" for size in ("8b", "70b")),
        *(f"llama-3.1-{size}" for size in ("8b", "70b", "405b")),
        *(f"llama-3.2-{size}" for size in ("1b", "3b")),
    ]
    assert all(model.source for model in MODELS)


def test_no_name_means_two_models() -> None:
    meant: dict[str, set[str]] = {}
    for model in MODELS:
        for name in (model.name, *model.aliases, *model.default_for, *([model.hf_id] if model.hf_id else [])):
            meant.setdefault(model_name_key(name), set()).add(model.name)
    assert {name: models for name, models in meant.items() if len(models) > 1} == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LLaMA-13B", "llama-1-13b"),
        ("llama_7b", "llama-1-7b"),
        ("llama-33b", "llama-1-30b"),
        ("llama_60m", "galore-llama-60m"),
        ("llama 2 70b", "llama-2-70b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-405B", "llama-3.1-405b"),
        ("llama3.2-1b", "llama-3.2-1b"),
    ],
)
def test_names_people_type(name: str, expected: str) -> None:
    model, assumptions = resolve_model(name)
    assert (model.name, assumptions) == (expected, ())


def test_a_name_that_could_mean_another_generation_is_said() -> None:
    model, assumptions = resolve_model("llama-1b")
    assert model.name == "galore-llama-1b"
    assert assumptions[0].startswith("llama-1b is read as galore-llama-1b")


def test_dims_carry_the_symbols_of_profiles() -> None:
    assert find_model("llama-3-70b").dims == {
        "L": 80,
        "h": 8192,
        "i": 28672,
        "a": 64,
        "k": 8,
        "d": 128,
        "V": 128256,
    }


def test_an_unknown_name_suggests_near_matches() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_model("lama-13b")
    assert "llama-1-13b" in caught.value.suggestions


@pytest.mark.parametrize(
    ("changes", "field", "error"),
    [
        ({"hidden_size": None}, "model.hidden_size", InputError),
        ({"hidden_size": 0}, "model.hidden_size", InputError),
        ({"hidden_size": "64"}, "model.hidden_size", InputError),
        ({"hidden_size": 64.0}, "model.hidden_size", InputError),
        ({"num_hidden_layers": True}, "model.num_hidden_layers", InputError),
        ({"vocab_size": 10**12}, "model.vocab_size", InputError),
        ({"num_attention_heads": 5}, "model.num_attention_heads", InputError),
        ({"num_key_value_heads": 3}, "model.num_key_value_heads", InputError),
        ({"tie_word_embeddings": "yes"}, "model.tie_word_embeddings", InputError),
        ({"model_type": None, "architectures": None}, "model.model_type", InputError),
        ({"model_type": "mistral"}, "model.model_type", UnsupportedError),
        ({"architectures": ["LlamaForSequenceClassification"]}, "model.architectures", UnsupportedError),
    ],
)
def test_a_config_that_cannot_be_counted_names_the_key(
    changes: dict[str, Any], field: str, error: type[InputError]
) -> None:
    with pytest.raises(InputError) as caught:
        model_from_config(make_config(**changes))
    assert (caught.value.field, type(caught.value)) == (field, error)


def test_a_misspelt_key_is_suggested() -> None:
    with pytest.raises(InputError) as caught:
        model_from_config(make_config(hidden_size=None, hiden_size=64))
    assert caught.value.suggestions[0] == "hiden_size"


def test_files_are_read_by_path_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(make_config()), encoding="utf-8")
    expected = model_from_config(make_config()).num_parameters
    assert find_model(tmp_path).num_parameters == expected
    assert find_model(tmp_path / "config.json").num_parameters == expected
    assert model_argument(str(tmp_path)) == make_config()
    assert model_argument("llama-13b") == "llama-13b"
    with pytest.raises(UnknownNameError):
        find_model(str(tmp_path / "config.json"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"], ids=["empty", "cut", "list", "binary"])
def test_a_file_that_holds_no_config_is_an_input_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"^model: "):
        read_model_config(file)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        model_argument(str(tmp_path / "absent.json"))


def test_a_module_of_ones_own_is_not_traced_yet() -> None:
    with pytest.raises(UnsupportedError):
        find_model("python:mine:build")


# Hugging Face, Qwen/Qwen2.5-1.5B: config.json, and "total" of its safetensors metadata.
QWEN = {
    "model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"architectures": ["Qwen2ForCausalLM"]}])
def test_qwen2_is_llama_with_biases_on_q_k_and_v(given: dict[str, Any]) -> None:
    model = find_model({**QWEN, **given})

    assert (model.architecture, model.num_parameters) == ("Qwen2ForCausalLM", 1_543_714_304)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model_type": "mistral"}, "model"),
        ({"architectures": ["LlamaForCausalLM"]}, "model"),
        ({"use_sliding_window": True}, "model"),
        ({"attention_bias": True}, "model"),
        ({"hidden_act": "gelu"}, "model"),
        ({"quantization_config": {"bits": 4}}, "model.quantization_config"),
        ({"trust_remote_code": True}, "model.trust_remote_code"),
    ],
)
def test_what_has_no_classes_needs_a_trace_of_its_own(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        find_model({**QWEN, **given})

    assert caught.value.field == field
