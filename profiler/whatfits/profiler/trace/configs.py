"""Any Hugging Face config as a model to trace: which class, how many layers, what is known of it.

Only code that transformers ships is run: a config that asks for code of its own (`auto_map` without a class of that
name in transformers) is refused.
"""

import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from whatfits.profiler.trace.config_errors import ConfigError, config_error
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.config_inputs import inputs_of
from whatfits.profiler.trace.options import BASE_LAYERS, NUM_DEPTHS

__all__ = ["build_from_config", "describe", "layers_of", "read_config"]

_WITH_LOSS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
)
"""transformers' tables of classes that compute a loss, by model type, in the order they are asked."""
_CHOSEN_HERE = ("attn_implementation", "_attn_implementation")
"""Keys of a config that the question decides: a name of a kernel there would have it fetched."""
_MAX_PERIOD = 12
_NUMBERING = ("layer_idx", "layer_id", "layer_index", "layer_number", "idx", "index")


def read_config(text: str, num_layers: int | None = None) -> Any:
    """The configuration object of a config's JSON text, at another depth if one is given.

    Where layers are left out at random (`layerdrop`) none is: that is the step which takes most.

    Raises:
        ConfigError: transformers has no such model type, or the config does not make one.
    """
    given = _without_chosen(json.loads(text))
    model_type = given.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        unknown = f"transformers {transformers.__version__} has no model type {model_type!r}"
        if "auto_map" in given:
            raise ConfigError(f"{unknown}, and code that comes with a model is never run", "auto_map")
        raise ConfigError(unknown, "model_type")
    try:
        config = transformers.AutoConfig.for_model(model_type, **given)
    except MemoryError:
        raise
    except Exception as error:
        raise config_error(f"the config makes no {model_type} model", error, given) from error
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.use_cache = False
        for name in [name for name in vars(part) if name.endswith("layerdrop")]:
            setattr(part, name, 0.0)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    if num_layers is not None:
        _set_depth(config, num_layers)
    return config


def _without_chosen(value: Any) -> Any:
    """A config, and the configs inside it, without the keys that the question decides."""
    if isinstance(value, list):
        return [_without_chosen(held) for held in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_chosen(held) for key, held in value.items() if key not in _CHOSEN_HERE}


def depth_of(config: Any) -> int | None:
    """Layers of the stack whose depth can be varied; none where there is no such stack, or two that hang together."""
    if config.is_encoder_decoder:
        return None
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def _set_depth(config: Any, num_layers: int) -> None:
    """The first layers of a config alone; lists with one entry per layer are cut with them."""
    stack = config.get_text_config()
    depth = depth_of(config)
    if depth is None or depth == num_layers:
        return
    for name, value in list(vars(stack).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(stack, name, value[:num_layers])
    stack.num_hidden_layers = num_layers


def model_class(config: Any, architectures: list[str] | None) -> Any:
    """The class that computes a loss: the one the config names, or its model type's.

    Raises:
        ConfigError: there is none.
    """
    architectures = architectures or config.architectures
    named = getattr(transformers, architectures[0], None) if architectures else None
    if named is not None and _computes_loss(named):
        return named
    causal_last = _is_encoder(config) or config.is_encoder_decoder
    for table in (*_WITH_LOSS[1:], _WITH_LOSS[0]) if causal_last else _WITH_LOSS:
        name = getattr(modeling_auto, table).get(config.model_type)
        if name is not None:
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise ConfigError(f"transformers has no class of {config.model_type} that computes a loss")


def _computes_loss(cls: Any) -> bool:
    return bool({"labels", "return_loss"} & set(inspect.signature(cls.forward).parameters))


def _is_encoder(config: Any) -> bool:
    """Whether a model that could be a decoder is one that is trained as an encoder, such as BERT."""
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and getattr(config, "is_decoder", None) is False


def build_from_config(
    text: str, num_layers: int | None, *, architecture: str, attention: str | None, dtype: torch.dtype
) -> nn.Module:
    """The model of a config on the current device, as transformers makes it.

    Args:
        text: the config's JSON.
        num_layers: depth, the config's own if none is given.
        architecture: class of transformers; chosen by the model type if it computes no loss.
        attention: eager, or none for what transformers prefers of those the class has.
        dtype: of the weights.
    """
    config = read_config(text, num_layers)
    cls = model_class(config, [architecture] if architecture else None)
    model: nn.Module = cls._from_config(config, dtype=dtype, attn_implementation=attention)
    return model


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a model by name: what transformers checkpoints one by one, else the outermost lists' members."""
    marked = getattr(transformers.modeling_layers, "GradientCheckpointingLayer", ())
    found = list(_outermost(model, lambda module: bool(marked) and isinstance(module, marked)))
    if found:
        return found
    lists = _outermost(model, lambda module: isinstance(module, nn.ModuleList))
    return [(f"{name}.{number}", layer) for name, group in lists for number, layer in group.named_children()]


def _outermost(module: nn.Module, wanted: Any, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if wanted(child):
            yield path, child
        else:
            yield from _outermost(child, wanted, path)


def describe(text: str, architecture: str = "") -> ConfigFacts:
    """Facts of a config's model, which is built on `meta` for it.

    Raises:
        ConfigError: the config makes no model.
    """
    config = read_config(text)
    cls = model_class(config, [architecture] if architecture else None)
    try:
        with torch.device("meta"):
            model: Any = cls._from_config(config)
    except MemoryError:
        raise
    except Exception as error:
        what = f"{cls.__name__} cannot be built from the config"
        raise config_error(what, error, json.loads(text)) from error
    stack = config.get_text_config()
    depth, layers = depth_of(config), layers_of(model)
    head_dim, heads = _number(stack, "head_dim"), _number(stack, "num_attention_heads")
    hidden_size = _number(stack, "hidden_size") or max(max(p.shape, default=1) for p in model.parameters())
    inputs = inputs_of(model)
    chunks = tuple(sorted(_lengths(stack, "chunk_size") - _lengths(stack, "attention_chunk")))
    return ConfigFacts(
        architecture=cls.__name__,
        inputs=inputs,
        num_layers=depth or max(len(layers), 1),
        depths=_repeating_depths(layers, depth),
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_active_parameters=_active_parameters(model, stack),
        hidden_size=hidden_size,
        longest=_longest(config),
        windows=() if inputs == "images" else _windows(stack, chunks),
        chunks=chunks,
        tied=len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False))),
        matrices_only=all(p.ndim <= 2 for p in model.parameters()),
        checkpoints=bool(model.supports_gradient_checkpointing),
        intermediate_size=_number(stack, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_number(stack, "num_key_value_heads") or heads,
        head_dim=head_dim or (hidden_size // heads if heads else None),
        vocab_size=_number(stack, "vocab_size"),
    )


def _active_parameters(model: nn.Module, config: Any) -> int | None:
    """Parameters a token passes through where experts share a tensor; none where there are no experts.

    Assumes: experts lie along the first dim of a tensor of three.
    """
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for n in (_number(config, name) for name in names) if n), None)
    chosen = _number(config, "num_experts_per_tok")
    if experts is None or chosen is None:
        return None
    idle = sum(p.numel() for p in model.parameters() if p.ndim == 3 and p.shape[0] == experts)
    return sum(p.numel() for p in model.parameters()) - idle * (experts - chosen) // experts


def _number(config: Any, name: str) -> int | None:
    """A positive number of a config; none where it has none, or layers have their own."""
    value = None if name in _names_of_layers(config) else getattr(config, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _names_of_layers(config: Any) -> set[str]:
    """What single layers have values of their own of, which transformers refuses to give for all of them."""
    return set(getattr(config, "per_layer_attributes", None) or ())


def _longest(config: Any) -> int | None:
    """Positions a sequence may have; a decoder's, where its encoder takes no text."""
    names = ("max_position_embeddings", "max_target_positions", "max_seq_len", "n_positions")
    return next((n for n in (_number(config.get_text_config(), name) for name in names) if n), None)


def _windows(config: Any, chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Sequence lengths at which what happens changes; those of images are the model's own."""
    return tuple(sorted({*_lengths(config, "window"), *_lengths(config, "attention_chunk"), *chunks}))


def _lengths(config: Any, word: str) -> set[int]:
    """Numbers of a config under keys with a word, but for those it says not to use."""
    if word == "window" and getattr(config, "use_sliding_window", True) is False:
        return set()
    layers = config.per_layer_config if word in "".join(_names_of_layers(config)) else ()
    return {
        v for part in (config, *layers) for k, v in vars(part).items()
        if word in k and "layer" not in k and "pattern" not in k
        and isinstance(v, int) and not isinstance(v, bool) and v > 1
    }  # fmt: skip


def _repeating_depths(layers: list[tuple[str, nn.Module]], depth: int | None) -> tuple[int, ...]:
    """Depths of the shallow traces of a stack that repeats, each one period deeper; none where its own depth must do.

    Layers are alike when their modules, the shapes of their parameters and their plain attributes are.
    """
    stacks: dict[str, list[nn.Module]] = {}
    for name, layer in layers:
        stacks.setdefault(name.rpartition(".")[0], []).append(layer)
    stack = next((s for s in reversed(stacks.values()) if len(s) == depth), None)
    if stack is None:
        return ()
    described = [_describe(layer) for layer in stack]
    for period in range(1, _MAX_PERIOD + 1):
        unlike = [j for j in range(len(stack) - period) if described[j] != described[j + period]]
        first = max(unlike[-1] + 1 + 2 if unlike else 0, BASE_LAYERS)
        first += (len(stack) - first) % period
        if first + (NUM_DEPTHS - 1) * period <= len(stack):
            return tuple(first + j * period for j in range(NUM_DEPTHS))
    return ()


def _describe(layer: nn.Module) -> Any:
    plain = (bool, int, float, str, type(None))
    return [
        (
            name,
            type(module).__name__,
            sorted(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, plain) and key not in _NUMBERING and not key.startswith("_")
            ),
            [tuple(p.shape) for p in module.parameters(recurse=False)],
        )
        for name, module in layer.named_modules()
    ]
