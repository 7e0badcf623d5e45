"""Updates inside the backward pass: equal to whole steps, without gradients left, and without holding the model."""

import gc
import io
import weakref
from typing import Any

import pytest
import torch

from tests.optim_impls.models import SmallModel, loss_of, make_model, train
from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.layerwise import LayerwiseOptimizer
from whatfits.optim_impls.registry import REGISTRY

ELEMENTWISE = tuple(
    name for name in ("adamw", "sgdm", "muon", "adamw_8bit_bnb", "schedule_free_adamw", "lion", "apollo")
    if name in REGISTRY
)  # fmt: skip


def built(name: str, model: SmallModel, **settings: Any) -> LayerwiseOptimizer:
    optimizer = build_optimizer(name, model, layerwise=True, **settings)
    assert isinstance(optimizer, LayerwiseOptimizer)
    return optimizer


def weights(model: SmallModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_layerwise_trains_as_whole_steps_do(name: str, tied: bool, device: torch.device) -> None:
    model, same = (make_model(device, tied=tied) for _ in range(2))

    # foreach would round otherwise than a loop of one.
    settings: dict[str, Any] = (
        {"implementation": "for_loop"} if "implementation" in REGISTRY[name].defaults else {}
    )
    layerwise = built(name, model, lr=1e-3, **settings)
    losses = train(model, layerwise, range(4))

    assert losses == train(same, build_optimizer(name, same, lr=1e-3, **settings), range(4))
    for mine, expected in zip(weights(model), weights(same), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_no_gradient_is_left_after_the_backward_pass(device: torch.device) -> None:
    model = make_model(device)
    optimizer = built("adamw", model)

    loss_of(model).backward()

    assert optimizer.param_groups
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []


def test_at_most_one_gradient_is_held_at_a_time(device: torch.device) -> None:
    model = make_model(device)
    held: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in model.parameters()))
        )
    optimizer = built("adamw", model)

    loss_of(model).backward()

    assert len(held) == len(optimizer.param_groups)
    assert max(held) == 1


def test_a_scheduler_reaches_every_parameter(device: torch.device) -> None:
    model = make_model(device)
    optimizer = built("sgd", model, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    train(model, optimizer, range(1))
    before = weights(model)

    scheduler.step()
    train(model, optimizer, range(1, 3))

    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_resumes_bitwise_from_a_safe_file(name: str, dtype: torch.dtype, device: torch.device) -> None:
    model, resumed = (make_model(device, dtype) for _ in range(2))
    optimizer = built(name, model, lr=1e-3)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = built(name, resumed, lr=5e-1)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])

    expected = train(model, optimizer, range(3, 6))

    assert train(resumed, again, range(3, 6)) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(resumed), strict=True))


def test_state_of_another_number_of_parameters_is_refused() -> None:
    model = make_model(torch.device("cpu"))
    optimizer = built("adamw", model)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]

    with pytest.raises(
        ValueError, match=r"state_dict has 15 parameter groups; accepted: 16|state_dict has \d+"
    ):
        optimizer.load_state_dict(saved)


def test_state_is_that_of_the_parameters(device: torch.device) -> None:
    model = make_model(device)
    optimizer = built("adamw", model)
    train(model, optimizer, range(1))

    assert set(optimizer.state) == set(model.parameters())


def test_removed_hooks_leave_weights_and_gradients_alone() -> None:
    model = make_model(torch.device("cpu"))
    optimizer = built("sgd", model, lr=1.0)
    optimizer.remove_hooks()
    before = weights(model)

    loss_of(model).backward()

    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_neither_model_nor_optimizer_is_kept_alive_by_the_hooks() -> None:
    model = make_model(torch.device("cpu"))
    optimizer = built("sgd", model)
    train(model, optimizer, range(1))
    model_alive, optimizer_alive = weakref.ref(model), weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert optimizer_alive() is None
        del model
        assert model_alive() is None
    finally:
        gc.enable()


def test_a_dropped_optimizer_takes_its_hooks_with_it() -> None:
    model = make_model(torch.device("cpu"))
    optimizer = built("sgd", model, lr=1.0)
    before = weights(model)
    del optimizer
    gc.collect()

    loss_of(model).backward()

    assert all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_closure_is_called_for_its_backward_pass() -> None:
    model = make_model(torch.device("cpu"))
    optimizer = built("sgd", model, lr=1.0)
    before = weights(model)

    def closure() -> torch.Tensor:
        loss = loss_of(model)
        loss.backward()
        return loss

    loss = optimizer.step(closure)

    assert loss.item() > 0
    assert not any(torch.equal(old, new) for old, new in zip(before[:1], weights(model)[:1], strict=True))
