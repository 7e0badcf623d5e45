"""The optimizer that is measured, from `whatfits.optim_impls`, and which of the estimator's programs speaks of it."""

from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from torch import nn

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.memory.optimizers.blockwise_8bit import DEFAULT_BLOCK_SIZE
from whatfits.estimator.memory.optimizers.facts import TORCH_IMPLEMENTATIONS
from whatfits.estimator.specs import ModelSpec, OptimizerImplementation, OptimizerSpec, RunSpec
from whatfits.optim_impls import REGISTRY, build_optimizer
from whatfits.optim_impls.build import treats_roles_alike
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.profiler.measure.recipe import Recipe, build_recipe

__all__ = [
    "MAX_GRAD_NORM",
    "build_recipe_optimizer",
    "measured_optimizer",
    "measured_recipe",
    "optimizer_package",
    "refresh_interval",
]

MAX_GRAD_NORM = 1.0
"""To which gradients are clipped where the run asks for it; no figure depends on it."""
_INTERVALS = ("projection_update_interval", "precondition_frequency")
"""What methods call the steps from refresh to refresh."""

NamedParameters = list[tuple[str, nn.Parameter]]


def measured_optimizer(spec: OptimizerSpec) -> tuple[OptimizerSpec, str | None]:
    """The optimizer as it is measured, and a sentence where that is not quite what was asked for.

    Of a method that `whatfits.optim_impls` has code of its own for, that code runs; `foreach`, the default, asks for the
    published one.
    """
    entry, facts = _entry(spec), OPTIMIZERS[spec.name]
    if entry.source != "own" or OptimizerImplementation.WHATFITS not in facts.implementations:
        return spec, None
    if spec.implementation is OptimizerImplementation.WHATFITS:
        return spec, None
    measured = spec.model_copy(update={"implementation": OptimizerImplementation.WHATFITS})
    return measured, (
        f"What ran is whatfits.optim_impls' {spec.name} (implementation whatfits), not the published code "
        f"that {spec.implementation} stands for."
    )


def measured_recipe(model: ModelSpec, run: RunSpec, *, on_cpu: bool, seed: int) -> tuple[Recipe, str | None]:
    """The recipe of a resolved run with the optimizer as it is measured, and a sentence where that is another.

    Raises:
        UnsupportedError: the run asks for something that is not measured.
    """
    optimizer, note = measured_optimizer(run.training.optimizer)
    training = run.training.model_copy(update={"optimizer": optimizer})
    return build_recipe(model, training, run.parallelism, on_cpu=on_cpu, seed=seed), note


def refresh_interval(spec: OptimizerSpec, model: ModelSpec) -> int | None:
    """Steps from refresh to refresh as the spec or the method has it, None where every step does alike."""
    entry = _entry(spec)
    interval = entry.declaration.refresh_interval({**entry.defaults, **_hyperparameters(spec, None, model)})
    return None if interval is None or interval == 1 else interval


def build_recipe_optimizer(
    recipe: Recipe, parameters: nn.Module | NamedParameters, *, interval: int | None
) -> torch.optim.Optimizer:
    """The optimizer over a model's parameters, with refreshes `interval` steps apart where the method has any.

    A method that treats all parameters alike gets them in one group and in the model's order, as a plain loop does.

    Raises:
        UnsupportedError: the optimizer's library is missing, or it refuses the model.
    """
    training = recipe.training
    spec, entry = training.optimizer, _entry(training.optimizer)
    try:
        return build_optimizer(
            entry.name,
            parameters,
            layerwise=training.layerwise_update,
            grad_accum_steps=training.grad_accum_steps,
            max_grad_norm=MAX_GRAD_NORM if training.gradient_clipping else None,
            one_group=treats_roles_alike(entry),
            **_hyperparameters(spec, interval, recipe.model),
        )
    except ImportError as error:
        reason = f"{spec.name} needs a library that is missing: {error}"
        raise UnsupportedError(
            "training.optimizer.name", str(spec.name), "another one", reason=reason
        ) from error
    except ValueError as error:
        reason = f"{spec.name} cannot train this: {error}"
        raise UnsupportedError(
            "training.optimizer", str(spec.name), "what its method takes", reason=reason
        ) from error


def optimizer_package(optimizer: torch.optim.Optimizer) -> tuple[str, str] | None:
    """Distribution and version of the library that an optimizer's class comes from; None for our own and torch's."""
    module = type(optimizer).__module__.partition(".")[0]
    if module in ("whatfits", "torch"):
        return None
    names = packages_distributions().get(module)
    return (names[0], version(names[0])) if names else None


def _entry(spec: OptimizerSpec) -> OptimizerEntry:
    if spec.name not in REGISTRY:
        reason = f"whatfits.optim_impls has no {spec.name}"
        raise UnsupportedError("training.optimizer.name", str(spec.name), ", ".join(REGISTRY), reason=reason)
    return REGISTRY[spec.name]


def _hyperparameters(spec: OptimizerSpec, interval: int | None, model: ModelSpec) -> dict[str, Any]:
    """What of a spec the method takes, by the method's own names.

    Raises:
        UnsupportedError: the spec has a setting that the method's code does not take.
    """
    known = _entry(spec).defaults
    given: dict[str, Any] = {}
    if spec.rank is not None and "rank" in known:
        given["rank"] = spec.rank
    elif spec.rank is not None and "density" in known:
        given["density"] = spec.rank / model.hidden_size
    steps = interval or spec.projection_update_interval
    if steps is not None:
        given |= {name: steps for name in _INTERVALS if name in known}
    if OPTIMIZERS[spec.name].implementations == TORCH_IMPLEMENTATIONS:
        given["implementation"] = str(spec.implementation)
    if "num_heads" in known:
        given |= {"hidden_size": model.hidden_size, "num_heads": model.num_attention_heads}
    if "foreach" in known:  # left to itself, the code takes lists on a GPU only
        given["foreach"] = spec.implementation is OptimizerImplementation.FOREACH
    if spec.block_size not in (None, DEFAULT_BLOCK_SIZE):
        reason = f"the code of {spec.name} has blocks of {DEFAULT_BLOCK_SIZE}"
        accepted = str(DEFAULT_BLOCK_SIZE)
        raise UnsupportedError("training.optimizer.block_size", spec.block_size, accepted, reason=reason)
    return given
