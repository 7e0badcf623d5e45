"""`build_optimizer`: from a name and a model to an optimizer, with every mistake refused before training begins."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.layerwise import LayerwiseOptimizer
from whatfits.optim_impls.registry import REGISTRY
from whatfits.optim_impls.roles import ParameterSource, split_by_role

__all__ = ["build_optimizer", "complete_hyperparameters", "treats_roles_alike"]


def build_optimizer(
    name: str,
    model_or_named_parameters: ParameterSource,
    *,
    layerwise: bool = False,
    grad_accum_steps: int = 1,
    max_grad_norm: float | None = None,
    one_group: bool = False,
    **hyperparameters: Any,
) -> torch.optim.Optimizer:
    """Build an optimizer, its parameters split as the method's paper does.

    Args:
        name: A name of `REGISTRY`.
        model_or_named_parameters: A model, or pairs of name and parameter. Frozen parameters are left out.
        layerwise: Update each parameter inside ``backward()`` and free its gradient at once.
        grad_accum_steps: Micro-batches whose gradients the training loop sums before a step.
        max_grad_norm: Global norm to which the training loop clips the gradients before a step. The loop does both;
            they are named here so that a method that cannot is refused now and not noticed after a day.
        one_group: Put all parameters into one group in the order of the model, as a plain ``AdamW(model.parameters())``
            has them: torch's multi-tensor forms then hold temporaries for all of them at once. Where the method treats
            every role alike.
        hyperparameters: The method's own, others are refused; what is left out takes the method's default.

    Raises:
        ValueError: an unknown name, hyper-parameter, dtype or combination; the message says what is accepted.
        ImportError: the library of an adapter is missing; the message names the extra that brings it.
    """
    entry = _entry(name)
    hyper = complete_hyperparameters(entry, hyperparameters)
    source = model_or_named_parameters
    pairs = list(source.named_parameters() if isinstance(source, nn.Module) else source)
    groups = split_by_role(source if isinstance(source, nn.Module) else pairs)
    if one_group:
        groups = _merged(entry, groups, [name for name, _ in pairs])
    _check_dtypes(entry, groups)
    _check_combination(
        entry, layerwise=layerwise, grad_accum_steps=grad_accum_steps, max_grad_norm=max_grad_norm
    )
    if layerwise and entry.capabilities.whole_step:
        return LayerwiseOptimizer(groups, partial(_build_one, entry, hyper))
    return entry.build(groups, hyper)


def complete_hyperparameters(entry: OptimizerEntry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given hyper-parameters and the defaults of the rest.

    Raises:
        ValueError: the method has no hyper-parameter of a given name.
    """
    for key in given:
        if key not in entry.defaults:
            raise ValueError(
                f"{key} is no hyper-parameter of {entry.name}; accepted: {', '.join(entry.defaults)}"
                f"{_suggestion(key, entry.defaults)}"
            )
    return {**entry.defaults, **given}


def treats_roles_alike(entry: OptimizerEntry) -> bool:
    """Whether a method's update is the same for matrices, embeddings, head and vectors."""
    return len({entry.declaration.treatment(role) for role in Role}) == 1


def _merged(
    entry: OptimizerEntry, groups: list[dict[str, Any]], order: Sequence[str]
) -> list[dict[str, Any]]:
    if not treats_roles_alike(entry):
        raise ValueError(
            f"one_group is True; accepted by {entry.name}: False, as it tells embeddings, matrices and vectors apart"
        )
    named = {
        name: parameter
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    names = [name for name in order if name in named]
    return [{"params": [named[name] for name in names], "param_names": names, "role": groups[0]["role"]}]


def _entry(name: str) -> OptimizerEntry:
    if name not in REGISTRY:
        raise ValueError(
            f"optimizer {name!r} is unknown; accepted: {', '.join(REGISTRY)}{_suggestion(name, REGISTRY)}"
        )
    return REGISTRY[name]


def _build_one(
    entry: OptimizerEntry, hyper: Mapping[str, Any], group: dict[str, Any]
) -> torch.optim.Optimizer:
    return entry.build([group], hyper)


def _check_dtypes(entry: OptimizerEntry, groups: list[dict[str, Any]]) -> None:
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.dtype not in entry.dtypes:
                accepted = ", ".join(map(str, entry.dtypes))
                raise ValueError(f"{name} is {parameter.dtype}; accepted by {entry.name}: {accepted}")


def _check_combination(
    entry: OptimizerEntry, *, layerwise: bool, grad_accum_steps: int, max_grad_norm: float | None
) -> None:
    can, name = entry.capabilities, entry.name
    if grad_accum_steps < 1:
        raise ValueError(f"grad_accum_steps is {grad_accum_steps}; accepted: 1 and more")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}; accepted: None or a number above 0")
    accumulates, clips = grad_accum_steps > 1, max_grad_norm is not None
    why: str | None = None
    if layerwise and not can.layerwise:
        why = f"layerwise is True; accepted by {name}: False. {can.reasons.get('layerwise', '')}"
    elif not layerwise and not can.whole_step:
        why = f"layerwise is False; accepted by {name}: True. {can.reasons.get('whole_step', '')}"
    elif accumulates and layerwise:
        why = (
            f"grad_accum_steps is {grad_accum_steps}, but a layer-wise update frees each gradient, so that nothing "
            "accumulates; accepted: 1, or layerwise=False"
        )
    elif clips and layerwise:
        why = (
            f"max_grad_norm is {max_grad_norm}, but the norm of all gradients is not known when a layer-wise update "
            "frees the first; accepted: None, or layerwise=False"
        )
    elif accumulates and not can.accumulates:
        why = f"grad_accum_steps is {grad_accum_steps}; accepted by {name}: 1. {can.reasons.get('accumulates', '')}"
    elif clips and not can.clips:
        why = f"max_grad_norm is {max_grad_norm}; accepted by {name}: None. {can.reasons.get('clips', '')}"
    if why is not None:
        raise ValueError(why.rstrip())


def _suggestion(word: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
