"""What no Hugging Face config can hold, refused before anything is built from it: every architecture's sizes alike."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from whatfits.estimator.errors import InputError

__all__ = ["LARGEST_SIZE", "check_config", "check_num_parameters"]

LARGEST_SIZE = 2**24
"""Far above any model's."""
MOST_LAYERS = 1024
"""The deepest that was trained has 1,000 (DeepNet, arXiv:2203.00555)."""
MOST_PARAMETERS = 10**13
"""More than any model has; what a config with more describes is a mistake."""
_DEEPEST = 32
"""Five times the deepest default config of transformers 5.23."""
_LAYER_KEYS = frozenset(
    {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
     "num_encoder_layers", "num_decoder_layers"}
)  # fmt: skip
_SIZE_KEYS = frozenset(
    {"hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim",
     "decoder_ffn_dim", "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
     "decoder_attention_heads", "num_key_value_heads", "vocab_size"}
)  # fmt: skip
"""Keys that hold a size in every architecture of transformers; where one holds a list, that is left to its code."""


# A Hugging Face config holds arbitrary JSON.
def check_config(config: Mapping[str, Any], field: str = "model") -> None:
    """Refuse what no architecture reads: numbers that are none, endless nesting, sizes no tensor can have.

    Raises:
        InputError: naming the first key at fault.
    """
    for path, key, value in _walk(config, field, _DEEPEST):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(path, str(value), "JSON: a finite number")
        if key in _LAYER_KEYS:
            _check_size(path, value, MOST_LAYERS)
        elif key in _SIZE_KEYS:
            _check_size(path, value, LARGEST_SIZE)


def check_num_parameters(num_parameters: int, field: str = "model") -> None:
    """Refuse a model of absurdly many parameters.

    Raises:
        InputError: it has more than `MOST_PARAMETERS`.
    """
    if num_parameters > MOST_PARAMETERS:
        reason = f"the config describes {num_parameters:.3g} parameters"
        raise InputError(
            field, num_parameters, f"a model of at most {MOST_PARAMETERS:.0e} parameters", reason=reason
        )


def _check_size(path: str, value: object, largest: int) -> None:
    if value is None or isinstance(value, list | tuple):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise InputError(path, value, f"a whole number from 1 to {largest}")


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Every value inside another with its path and the key it has; the members of a list have its key."""
    if not isinstance(value, Mapping | list | tuple):
        return
    if depth == 0:
        shown = ".".join(path.split(".")[:3])
        raise InputError(shown, "...", f"at most {_DEEPEST} levels", reason="nested too deeply for a config")
    inside = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, held in inside:
        below = f"{path}.{key}" if isinstance(value, Mapping) else f"{path}[{key}]"
        yield below, str(key), held
        yield from _walk(held, below, depth - 1)
