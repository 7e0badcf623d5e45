"""The optimizer that a recipe asks for, and what is refused of it."""

import pytest
import torch
from torch import nn

from tests.profiler.measure.requests import make_request
from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec
from whatfits.profiler.measure.optimizers import build_recipe_optimizer, measured_optimizer
from whatfits.profiler.measure.recipe import Recipe, build_recipe


def recipe_with(**optimizer: object) -> Recipe:
    resolved = resolve_run(make_request(training={"optimizer": optimizer}).spec)
    run = resolved.run
    return build_recipe(resolved.model, run.training, run.parallelism)


def test_a_model_that_the_optimizer_refuses_is_refused_with_its_words() -> None:
    frozen = nn.Linear(4, 4).requires_grad_(False)

    with pytest.raises(UnsupportedError, match="no trainable parameter") as caught:
        build_recipe_optimizer(recipe_with(name="adamw"), frozen, interval=None)
    assert caught.value.field == "training.optimizer"


def test_a_missing_library_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "schedulefree", None)

    with pytest.raises(UnsupportedError, match="whatfits\\[optimizers\\]") as caught:
        build_recipe_optimizer(recipe_with(name="schedule_free_adamw"), nn.Linear(4, 4), interval=None)
    assert caught.value.field == "training.optimizer.name"


def test_settings_reach_the_optimizer() -> None:
    model = nn.Sequential(nn.Linear(48, 48, bias=False))

    optimizer = build_recipe_optimizer(recipe_with(name="galore_adamw", rank=3), model, interval=7)

    (group,) = optimizer.param_groups
    assert (group["rank"], group["projection_update_interval"]) == (3, 7)
    fused = build_recipe_optimizer(recipe_with(name="adamw", implementation="fused"), model, interval=None)
    assert fused.param_groups[0]["fused"] is True
    assert isinstance(fused, torch.optim.AdamW)


def test_our_own_code_stands_for_the_published_one_and_says_so() -> None:
    asked = OptimizerSpec(name=OptimizerName.LION)

    measured, note = measured_optimizer(asked)

    assert measured.implementation is OptimizerImplementation.WHATFITS
    assert note is not None
    assert measured_optimizer(measured) == (measured, None)
