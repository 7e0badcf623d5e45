"""The GPU catalog and the names people type for its entries.

How a name resolves:

1. An id, or an alias listed in the data: that GPU.
2. A name listed under `default_for` in the data ("h100"): that GPU, recorded as an assumption. This is how a name is
   settled although its variants differ.
3. A family with or without capacity and form factor, in any order ("a100 80g", "A100-PCIe"). Variants that differ
   only in form factor resolve to SXM, recorded as an assumption; variants that differ in memory are an error that
   lists the choices, because the answer depends on which is meant.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from whatfits.estimator.catalog.names import gpu_keys, gpu_name_key
from whatfits.estimator.errors import InputError, UnknownNameError, near_matches
from whatfits.estimator.specs.hardware import GpuSpec
from whatfits.estimator.units import GB

__all__ = ["find_gpu", "load_gpus", "resolve_gpu"]

_FORM_FACTOR_PREFERENCE = ("sxm", "pcie", "nvl")


@lru_cache(maxsize=1)
def load_gpus() -> Mapping[str, GpuSpec]:
    """All GPUs by id, in the order of the data file."""
    text = files("whatfits.estimator.catalog").joinpath("gpus.json").read_text(encoding="utf-8")
    specs = (GpuSpec.model_validate(row) for row in json.loads(text)["gpus"])
    return MappingProxyType({spec.id: spec for spec in specs})


def find_gpu(name: str, *, field: str = "hardware.gpu") -> GpuSpec:
    """The GPU a name means.

    Raises:
        UnknownNameError: No GPU has that name.
        InputError: GPUs of different memory have it.
    """
    return resolve_gpu(name, field=field)[0]


def resolve_gpu(name: str, *, field: str = "hardware.gpu") -> tuple[GpuSpec, tuple[str, ...]]:
    """The GPU a name means, and what had to be assumed to say so."""
    key = gpu_name_key(name)
    exact = _exact_names().get(key)
    if exact is not None:
        return exact, ()
    default = _default_names().get(key)
    if default is not None:
        return default, (
            f"{name} is read as {default.id} ({default.name}), the most common of its variants.",
        )
    matches = _generic_names().get(key, ())
    if not matches:
        raise _unknown(name, field)
    if len({gpu.marketed_bytes for gpu in matches}) > 1:
        raise _ambiguous(name, matches, field)
    chosen = min(matches, key=_preference)
    others = ", ".join(gpu.id for gpu in matches if gpu is not chosen)
    if not others:
        return chosen, ()
    return chosen, (f"{name} is read as {chosen.id}; {others} has the same memory in another form factor.",)


def _preference(gpu: GpuSpec) -> int:
    return _FORM_FACTOR_PREFERENCE.index(gpu.form_factor) if gpu.form_factor else len(_FORM_FACTOR_PREFERENCE)


def _unknown(name: str, field: str) -> UnknownNameError:
    spellings: dict[str, str] = {}
    for gpu in sorted(load_gpus().values(), key=lambda gpu: (not gpu.default_for, _preference(gpu))):
        for spelling in (gpu.id, gpu.family, *gpu.aliases):
            spellings.setdefault(spelling, gpu.id)
    close = dict.fromkeys(spellings[match] for match in near_matches(name, spellings, limit=8))
    return UnknownNameError(
        field,
        name,
        "a GPU of the catalog (`whatfits gpus` lists them)",
        reason=f"no GPU is called {name!r}",
        suggestions=list(close)[:3],
    )


def _ambiguous(name: str, matches: tuple[GpuSpec, ...], field: str) -> InputError:
    matches = tuple(sorted(matches, key=lambda gpu: (gpu.marketed_bytes, _preference(gpu))))
    sizes = " and ".join(f"{size // GB} GB" for size in sorted({gpu.marketed_bytes for gpu in matches}))
    return InputError(
        field,
        name,
        "a name with the memory size",
        reason=f"{name!r} comes with {sizes}, and the answer depends on which",
        suggestions=tuple(gpu.id for gpu in matches),
    )


@lru_cache(maxsize=1)
def _exact_names() -> Mapping[str, GpuSpec]:
    return {
        gpu_name_key(spelling): gpu
        for gpu in load_gpus().values()
        for spelling in (gpu.id, gpu.name, *gpu.aliases)
    }


@lru_cache(maxsize=1)
def _default_names() -> Mapping[str, GpuSpec]:
    return {gpu_name_key(name): gpu for gpu in load_gpus().values() for name in gpu.default_for}


@lru_cache(maxsize=1)
def _generic_names() -> Mapping[str, tuple[GpuSpec, ...]]:
    found: dict[str, tuple[GpuSpec, ...]] = {}
    for gpu in load_gpus().values():
        for key in set(gpu_keys(gpu.family, f"{gpu.marketed_bytes // GB}gb", gpu.form_factor)):
            found[key] = (*found.get(key, ()), gpu)
    return found
