"""How typed names are compared: case, spaces and punctuation do not count."""

import re
from collections.abc import Iterator

__all__ = ["gpu_keys", "gpu_name_key", "model_name_key"]

_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|amd|instinct|radeon|intel|habana)\b")
_CAPACITY = re.compile(r"(\d+)\s*(gib|gb|g)(?![a-z])")
_GENERATION = re.compile(r"(sxm|pcie)\d?")
_PUNCTUATION = re.compile(r"[^a-z0-9]+")
_OUTSIDE_NUMBERS = re.compile(r"[^a-z0-9.]+|(?<!\d)\.|\.(?!\d)")
_MODEL_SUFFIX = re.compile(r"[-_ ](hf|instruct|chat|chat-hf)$")


def gpu_name_key(name: str) -> str:
    """The form in which GPU names are equal: "NVIDIA A100-SXM4-80GB" gives "a100sxm80gb"."""
    text = _MAKERS.sub(" ", name.casefold())
    text = _CAPACITY.sub(r" \1gb ", text)
    text = _GENERATION.sub(r" \1 ", text)
    return _PUNCTUATION.sub("", text)


def gpu_keys(family: str, capacity: str, form_factor: str | None) -> Iterator[str]:
    """Keys of every way to say a family with or without its capacity and form factor, in either order."""
    base = gpu_name_key(family)
    yield from (base, base + capacity)
    if form_factor is not None:
        yield from (base + form_factor, base + capacity + form_factor, base + form_factor + capacity)


def model_name_key(name: str) -> str:
    """The form in which model names are equal: "LLaMA 3.1 8B" and "llama-3.1-8b" give "llama3.18b".

    Points in numbers count: opt-1.3b is not opt-13b.
    """
    return _OUTSIDE_NUMBERS.sub("", _MODEL_SUFFIX.sub("", name.casefold().strip()))
