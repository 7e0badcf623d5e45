"""From a Hugging Face `config.json` of the LLaMA architecture, or of Qwen2, to the facts the estimator works with."""

from collections.abc import Mapping
from typing import Any

from whatfits.estimator.catalog.config_checks import LARGEST_SIZE, check_num_parameters
from whatfits.estimator.errors import InputError, UnsupportedError, near_matches
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.rules import check_model

__all__ = ["ARCHITECTURES", "is_modelled", "llama_num_parameters", "model_from_config"]

# A config.json holds arbitrary JSON.
Config = Mapping[str, Any]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
"""The class in transformers of each model type. Qwen2 is LLaMA with biases on the projections of q, k and v."""
_SHAPE_KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
_DEFAULT_MAX_POSITION_EMBEDDINGS = 2048
"""transformers' LlamaConfig."""
_UNCHANGED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "attention_dropout": 0,
    "use_sliding_window": False,
    "quantization_config": None,
    "trust_remote_code": False,
}
"""Keys whose other values change shapes or saved tensors."""


def is_modelled(config: Config) -> bool:
    """Whether classes of an architecture ship that cover a config; one that names no model type is told so there."""
    if config.get("model_type") is None:
        return True
    architectures = config.get("architectures")
    expected = ARCHITECTURES.get(config["model_type"]) if isinstance(config["model_type"], str) else None
    return (
        expected is not None
        and architectures in (None, [expected], (expected,))
        and all(config.get(key) in (None, modelled) for key, modelled in _UNCHANGED.items())
    )


def model_from_config(
    config: Config, *, name: str | None = None, source: str = "config.json", field: str = "model"
) -> ModelSpec:
    """The model a config describes.

    Raises:
        InputError: A key is missing or has a value no model can have.
        UnsupportedError: The architecture is not one of these.
    """
    model_type = _model_type(config, field)
    shape = {key: _positive(config, key, field) for key in _SHAPE_KEYS}
    hidden_size, heads = shape["hidden_size"], shape["num_attention_heads"]
    if hidden_size % heads:
        reason = f"num_attention_heads {heads} does not divide hidden_size {hidden_size}"
        raise InputError(f"{field}.num_attention_heads", heads, f"a divisor of {hidden_size}", reason=reason)
    facts = {
        "num_layers": shape["num_hidden_layers"],
        "hidden_size": hidden_size,
        "intermediate_size": shape["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": _positive(config, "num_key_value_heads", field, default=heads),
        "head_dim": _positive(config, "head_dim", field, default=hidden_size // heads),
        "vocab_size": shape["vocab_size"],
    }
    tied = _boolean(config, "tie_word_embeddings", field)
    longest = _positive(config, "max_position_embeddings", field, default=_DEFAULT_MAX_POSITION_EMBEDDINGS)
    model = ModelSpec.model_validate(
        {
            **facts,
            "name": name or str(config.get("_name_or_path") or "config.json"),
            "architecture": ARCHITECTURES[model_type],
            "tie_embeddings": tied,
            "max_position_embeddings": longest,
            "num_parameters": llama_num_parameters(
                **facts, tie_embeddings=tied, qkv_bias=model_type == "qwen2"
            ),
            "source": source,
        }
    )
    check_num_parameters(model.num_parameters, field)
    check_model(model, field=field)
    return model


def llama_num_parameters(
    *,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    vocab_size: int,
    tie_embeddings: bool,
    qkv_bias: bool = False,
) -> int:
    """Parameters of `LlamaForCausalLM`, a tied head counted once; of `Qwen2ForCausalLM` with `qkv_bias`.

    V h (2 - tied) + L (2 h a d + 2 h k d + 3 h i + 2 h + [a d + 2 k d]) + h, with a query heads and k key-value heads
    of width d; the term in brackets are the biases.

    Source: transformers, models/llama/modeling_llama.py: q, k, v, o projections; gate, up, down; two norms a layer.
    models/qwen2/modeling_qwen2.py: bias=True of q_proj, k_proj and v_proj.
    Assumes: no other biases.
    """
    embeddings = vocab_size * hidden_size * (1 if tie_embeddings else 2)
    attention = 2 * hidden_size * head_dim * (num_attention_heads + num_key_value_heads)
    feed_forward = 3 * hidden_size * intermediate_size
    biases = head_dim * (num_attention_heads + 2 * num_key_value_heads) if qkv_bias else 0
    return embeddings + num_layers * (attention + feed_forward + 2 * hidden_size + biases) + hidden_size


def _model_type(config: Config, field: str) -> str:
    """The model type, from its own key or from the architecture."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if architectures is None and model_type is None:
        accepted = ", ".join(
            f'"model_type": "{t}" or "architectures": ["{a}"]' for t, a in ARCHITECTURES.items()
        )
        raise InputError(
            f"{field}.model_type", None, accepted, reason="neither model_type nor architectures is given"
        )
    if model_type is not None and model_type not in ARCHITECTURES:
        reason = f"model_type {model_type!r} is not modelled yet"
        raise UnsupportedError(f"{field}.model_type", model_type, ", ".join(ARCHITECTURES), reason=reason)
    for name, architecture in ARCHITECTURES.items():
        if model_type in (None, name) and architectures in (None, [architecture], (architecture,)):
            return name
    accepted = ", ".join(f'["{a}"]' for t, a in ARCHITECTURES.items() if model_type in (None, t))
    reason = f"architectures {architectures!r} is not modelled yet"
    raise UnsupportedError(f"{field}.architectures", architectures, accepted, reason=reason)


def _positive(config: Config, key: str, field: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        if default is not None:
            return default
        suggestions = near_matches(key, (str(given) for given in config))
        reason = f"the config has no {key}"
        raise InputError(
            f"{field}.{key}", None, "a whole number of at least 1", reason=reason, suggestions=suggestions
        )
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
        raise InputError(f"{field}.{key}", value, f"a whole number from 1 to {LARGEST_SIZE}")
    return value


def _boolean(config: Config, key: str, field: str) -> bool:
    value = config.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise InputError(f"{field}.{key}", value, "true or false")
