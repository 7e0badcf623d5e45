"""The short form of a cluster: "8xA100-80GB", "h100", "2x8xh100" (nodes x GPUs)."""

import re

from whatfits.estimator.catalog.gpus import resolve_gpu
from whatfits.estimator.errors import InputError
from whatfits.estimator.specs.hardware import DEFAULT_GPUS_PER_NODE, GpuSpec, HardwareSpec

__all__ = ["parse_gpus"]

_TIMES = r"\s*[x*\u00d7]\s*"
_CLUSTER = re.compile(rf"\s*(?:(\d{{1,9}}){_TIMES})?(?:(\d{{1,9}}){_TIMES})?(\S.*?)\s*", re.IGNORECASE)
_ACCEPTED = "GPUs such as 8xa100-80gb, h100 or 2x8xh100 (nodes x GPUs)"
_MOST_GPUS = 2**20


def parse_gpus(text: str, *, field: str = "gpus") -> tuple[HardwareSpec, list[str]]:
    """The hardware a short form means, and what had to be assumed to say so.

    Raises:
        InputError: The text has another form, a count is 0 or too large, or the GPU's name is not decidable.
        UnknownNameError: No GPU has that name.
    """
    match = _CLUSTER.fullmatch(text)
    if match is None:
        raise InputError(field, text, _ACCEPTED)
    first, second, name = match.groups()
    counts = [int(count) for count in (first, second) if count is not None]
    num_gpus = counts[0] * counts[-1] if len(counts) == 2 else (counts[0] if counts else 1)
    if not 1 <= num_gpus <= _MOST_GPUS:
        raise InputError(field, text, _ACCEPTED, reason=f"{text!r} is {num_gpus} GPUs, not 1 to {_MOST_GPUS}")
    gpu, assumptions = _resolve(name, text, field)
    per_node = counts[1] if len(counts) == 2 else min(num_gpus, DEFAULT_GPUS_PER_NODE)
    if num_gpus % per_node:
        accepted = f"a multiple of {per_node} GPUs, or nodes x GPUs such as 2x{num_gpus // 2}x{gpu.id}"
        reason = f"{num_gpus} GPUs do not fill machines of {per_node}"
        raise InputError(field, text, accepted, reason=reason)
    return HardwareSpec(gpu=gpu.id, num_gpus=num_gpus, gpus_per_node=per_node), list(assumptions)


def _resolve(name: str, text: str, field: str) -> tuple[GpuSpec, tuple[str, ...]]:
    """The GPU of the text; an error names the whole text and suggests whole texts, ready to copy."""
    try:
        return resolve_gpu(name, field=field)
    except InputError as error:
        counts = text[: text.rindex(name)].strip()
        suggestions = [counts + suggestion for suggestion in error.suggestions]
        raise type(error)(
            field, text, error.accepted, reason=error.reason, suggestions=suggestions
        ) from error
