"""Gradient accumulation, clipping and layer-wise updates: what is declared possible works, what is not is refused."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.optim_impls.models import loss_of, make_model, train
from tests.optim_impls.test_registry import CUDA_ONLY, NAMES, SETTINGS
from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.registry import REGISTRY

ON_CPU = sorted(set(NAMES) - CUDA_ONLY)


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def names_that(field: str, *, can: bool) -> list[str]:
    return [name for name in ON_CPU if getattr(REGISTRY[name].capabilities, field) is can]


@pytest.mark.parametrize(
    "name", [n for n in names_that("layerwise", can=True) if n not in {"lomo", "adalomo"}]
)
def test_layerwise_updates_are_those_of_whole_steps(name: str) -> None:
    model, same = (make_model(torch.device("cpu")) for _ in range(2))
    settings = SETTINGS.get(name, {})

    torch.manual_seed(1)
    losses = train(model, build_optimizer(name, model, layerwise=True, **settings), range(4))

    torch.manual_seed(1)
    expected = train(same, build_optimizer(name, same, **settings), range(4))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", names_that("layerwise", can=False))
def test_layerwise_is_refused_with_the_reason(name: str) -> None:
    reason = REGISTRY[name].capabilities.reasons["layerwise"]

    with pytest.raises(ValueError, match=rf"layerwise is True; accepted by {name}: False\.") as caught:
        build_optimizer(name, make_model(torch.device("cpu")), layerwise=True, **SETTINGS.get(name, {}))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name", [n for n in names_that("accumulates", can=True) if REGISTRY[n].capabilities.clips]
)
def test_gradients_are_accumulated_and_clipped_before_a_step(name: str) -> None:
    model = make_model(torch.device("cpu"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(1)
    optimizer = build_optimizer(name, model, grad_accum_steps=2, max_grad_norm=0.1, **SETTINGS.get(name, {}))
    norms = []
    for step in range(3):
        for micro_batch in (2 * step, 2 * step + 1):
            (loss_of(model, micro_batch) / 2).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
        optimizer.zero_grad()

    assert min(norms) > 0.1
    assert torch.isfinite(loss_of(model))
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", names_that("accumulates", can=False))
def test_accumulation_and_clipping_are_refused_with_the_reason(name: str) -> None:
    can = REGISTRY[name].capabilities
    layerwise = not can.whole_step
    for settings in ({"grad_accum_steps": 2}, {"max_grad_norm": 1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is "):
            build_optimizer(name, make_model(torch.device("cpu")), layerwise=layerwise, **settings)
