"""The text that stands for a Hugging Face config, and the short name a profile of it is kept under."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CONFIG_MULTIPLE", "canonical_config", "config_id", "kind_of_lengths"]

CONFIG_MULTIPLE = 16
"""Lengths that are its multiples are one class of a config: masks are padded to 8 in memory, gradients of biases to 16.

Those of 8 alone are another one: only the gradients are padded there."""

_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
    }
)
"""Keys that change no tensor of a training step whose precision the question gives."""
_NAME_LENGTH = 16


def canonical_config(config: Mapping[str, Any]) -> str:
    """A config's JSON with sorted keys, without those that have no effect. Equal for configs that make equal models."""
    kept = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


def config_id(text: str) -> str:
    """Sixteen hex digits of the SHA-256 of a config's canonical text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_LENGTH]


def kind_of_lengths(lengths: Sequence[int], chunks: Sequence[int]) -> str:
    """Class of the lengths of a micro-batch of a config: what they are multiples of; `a_and_b` where they differ.

    `eights`: of 16, and of every chunk that the model pads sequences to; `odd_eights`: of 8 alone, where there are no
    chunks; else `other`, with the chunks it fills (`other_chunks_24`), since where nothing is padded less happens.
    """
    return "_and_".join(dict.fromkeys(_kind(length, chunks) for length in lengths))


def _kind(length: int, chunks: Sequence[int]) -> str:
    if not any(length % multiple for multiple in (CONFIG_MULTIPLE, *chunks)):
        return "eights"
    if not chunks and length % 8 == 0:
        return "odd_eights"
    return "_".join(["other", *(f"chunks_{chunk}" for chunk in chunks if length % chunk == 0)])
