"""The table of optimizers: every row is complete, trains in every dtype it names, repeats itself and resumes bitwise."""

import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.optim_impls.models import make_model, train
from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.registry import REGISTRY

SETTINGS: dict[str, dict[str, Any]] = {
    "adam_mini": {"hidden_size": 64, "num_heads": 4},
    # Its default, for fine-tuning, is below the steps of bf16.
    "mezo": {"lr": 1e-2},
}
"""Hyper-parameters that have no default that suits a small model."""
CUDA_ONLY = frozenset({"paged_adamw", "paged_adamw_8bit", "paged_lion_8bit"})
NOT_INSTALLED = frozenset({"badam"} if importlib.util.find_spec("badam") is None else ())
"""The package badam brings transformers with it, and is in an extra of its own."""
NO_SAFE_RESUME = {
    "badam": "its state_dict leaves out which layer is in training and the fp32 weights",
}
NAMES = sorted(set(REGISTRY) - NOT_INSTALLED)


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """torchao compiles its update; what is compiled is its business, and takes a compiler and minutes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def case(request: pytest.FixtureRequest, device: torch.device) -> tuple[str, torch.device]:
    name = request.param
    if name in CUDA_ONLY and device.type != "cuda":
        pytest.skip("needs CUDA's managed memory")
    return name, device


def build(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    layerwise = not REGISTRY[name].capabilities.whole_step
    torch.manual_seed(1)
    return build_optimizer(name, model, layerwise=layerwise, **SETTINGS.get(name, {}))


def test_at_least_forty_names_build_on_the_cpu() -> None:
    assert len(set(NAMES) - CUDA_ONLY) >= 40


@pytest.mark.parametrize("name", REGISTRY)
def test_every_row_is_complete(name: str) -> None:
    entry = REGISTRY[name]

    assert entry.name == name == name.lower()
    assert entry.title
    assert entry.summary.endswith(".")
    assert entry.paper
    assert entry.licence in {"Apache-2.0", "BSD-3-Clause", "MIT"}
    assert "lr" in entry.defaults
    assert (entry.extra is not None) is (entry.source != "own" and not entry.source.startswith("torch."))
    assert all(entry.declaration.treatment(role) for role in Role)
    can = entry.capabilities
    refused = {f for f in ("layerwise", "whole_step", "accumulates", "clips") if not getattr(can, f)}
    assert refused == set(can.reasons) - {"shards"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_three_steps_change_every_weight_and_stay_finite(
    case: tuple[str, torch.device], dtype: torch.dtype
) -> None:
    name, device = case
    if dtype not in REGISTRY[name].dtypes:
        pytest.skip("not a dtype of this method")
    model = make_model(device, dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    losses = train(model, build(name, model), range(3))

    assert all(torch.isfinite(torch.tensor(losses)))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    # In bf16 a small update of a norm's ones rounds to nothing.
    assert {key for key in before if dtype is torch.float32 or "norm" not in key} <= changed


@pytest.mark.parametrize("case", NAMES, indirect=True)
def test_the_same_run_twice_is_the_same_bitwise(case: tuple[str, torch.device]) -> None:
    name, device = case
    models = [make_model(device) for _ in range(2)]

    losses = [train(model, build(name, model), range(4)) for model in models]

    assert losses[0] == losses[1]
    first, second = (list(model.parameters()) for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", sorted(set(NAMES) - set(NO_SAFE_RESUME)), indirect=True)
def test_resumes_bitwise_from_a_file_loaded_safely(
    case: tuple[str, torch.device], dtype: torch.dtype
) -> None:
    name, device = case
    if dtype not in REGISTRY[name].dtypes:
        pytest.skip("not a dtype of this method")
    model, resumed = (make_model(device, dtype, seed=seed) for seed in (0, 1))
    optimizer = build(name, model)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = build(name, resumed)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])

    expected = train(model, optimizer, range(3, 6))

    assert train(resumed, again, range(3, 6)) == expected
    mine, theirs = list(resumed.parameters()), list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
