"""Modules of the user's own: `MODULE:FACTORY`, found from the working folder on.

`FACTORY()` returns the module, built on the default device. It, or MODULE, has a function
`sample_inputs(batch, seq_len, device)` that returns the keyword arguments of one micro-batch. Its forward returns the
loss, or an object whose `.loss` that is.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import nn

from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.configs import layers_of

__all__ = ["build_own", "describe_own", "own_inputs"]


class OwnModuleError(ValueError):
    """What is named is no factory of modules, or lacks what a micro-batch needs."""


def build_own(name: str, dtype: torch.dtype) -> nn.Module:
    """The module of a factory on the current device, its floating-point tensors in a dtype.

    Raises:
        OwnModuleError: the name is of nothing that makes a module.
    """
    place, factory = _split(name)
    make = getattr(_load(place), factory, None)
    if not callable(make):
        raise OwnModuleError(f"{place} has no function {factory}")
    made = make()
    if not isinstance(made, nn.Module):
        raise OwnModuleError(f"{name} returned {type(made).__name__}, no torch.nn.Module")
    return made.to(dtype)


def own_inputs(name: str, model: nn.Module, dims: dict[str, int], device: torch.device) -> dict[str, Any]:
    """The keyword arguments of one micro-batch; where they name no dtype, floating-point ones have the weights'.

    Raises:
        OwnModuleError: nothing makes them, or it makes something else.
    """
    place, _ = _split(name)
    sample = getattr(model, "sample_inputs", None) or getattr(_load(place), "sample_inputs", None)
    if sample is None:
        raise OwnModuleError(f"neither the module nor {place} has sample_inputs(batch, seq_len, device)")
    floating = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(floating)
    try:
        given = sample(dims["b"], dims["s"], device)
    finally:
        torch.set_default_dtype(before)
    if not isinstance(given, dict):
        raise OwnModuleError(f"sample_inputs returned {type(given).__name__}, no dict of keyword arguments")
    return given


def describe_own(name: str) -> ConfigFacts:
    """What is known of a module without a config: its parameters and its layers."""
    with torch.device("meta"):
        model = build_own(name, torch.float32)
    parameters = list(model.parameters())
    if not parameters:
        raise OwnModuleError(f"{name} has no parameters")
    return ConfigFacts(
        architecture=type(model).__name__,
        inputs="tokens",
        num_layers=max(len(layers_of(model)), 1),
        depths=(),
        num_parameters=sum(p.numel() for p in parameters),
        num_active_parameters=None,
        matrices_only=all(p.ndim <= 2 for p in parameters),
        hidden_size=max(max(p.shape, default=1) for p in parameters),
        longest=None,
        windows=(),
        chunks=(),
        tied=len(parameters) < len(list(model.named_parameters(remove_duplicate=False))),
        checkpoints=False,
        intermediate_size=None,
        num_attention_heads=None,
        num_key_value_heads=None,
        head_dim=None,
        vocab_size=None,
    )


def _split(name: str) -> tuple[str, str]:
    place, _, factory = name.partition(":")
    if not place or not factory:
        raise OwnModuleError(f"{name} is not MODULE:FACTORY")
    return place, factory


def _load(place: str) -> ModuleType:
    folder = os.getcwd()  # noqa: PTH109  (sys.path holds text)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name != place.partition(".")[0]:
            raise
        raise OwnModuleError(f"there is no module {place} in {folder} or where Python looks") from error
