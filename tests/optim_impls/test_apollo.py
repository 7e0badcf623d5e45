"""APOLLO: equal to the paper's algorithm in float64, where the scaled gradient is formed; P from seeds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim_impls.checks import DTYPES, build, check_deterministic_and_resumes
from tests.optim_impls.low_rank_checks import (
    INTERVAL,
    MATRICES,
    RANK,
    adam,
    bias,
    error,
    gradient,
    limited,
    run_both,
)
from whatfits.optim_impls.apollo import ENTRIES
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.projection import draw_random, seeded_generator

APOLLO, MINI = ENTRIES
BETAS = (0.9, 0.99)
LR = 0.02
HYPER: dict[str, Any] = {
    "lr": LR,
    "betas": BETAS,
    "weight_decay": 0.1,
    "projection_update_interval": INTERVAL,
    "projection_scale": 4.0,
    "seed": 3,
}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.08}


def drawn(rank: int, dtype: torch.dtype, device: torch.device) -> Any:
    """P of a step, as the optimizer draws it on its device for its first parameter."""

    def projection(grad: Tensor, step: int, p: Tensor | None) -> Tensor:
        out = torch.empty(rank, min(grad.shape), dtype=dtype, device=device)
        draw_random(out, seeded_generator(3, 0, (step - 1) // INTERVAL, device), rank=out.shape[0])
        return out.cpu().double()

    return projection


def paper(dim: int | None) -> Any:
    """arXiv:2412.05270, Algorithm 1, with the limiter of arXiv:2410.01623 and decoupled weight decay."""

    def update(weights: Tensor, grad: Tensor, state: dict[str, Any], p: Tensor, step: int) -> Tensor:
        low = grad @ p.T
        factors = adam(low, state, step, BETAS, 1e-8).norm(dim=dim, keepdim=True) / low.norm(
            dim=dim, keepdim=True
        )
        scaled = limited(factors * grad, state, bias(step, BETAS))
        return (1 - LR * 0.1) * weights - LR * 2.0 * scaled

    return update


@pytest.mark.parametrize("stores", [False, True], ids=["drawn", "stored"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MATRICES)
def test_steps_are_those_of_the_paper(
    shape: str, dtype: torch.dtype, stores: bool, device: torch.device
) -> None:
    hyper = {**HYPER, "rank": RANK, "stored_projection": stores}
    p = drawn(RANK, dtype, device)
    result = run_both(APOLLO, hyper, MATRICES[shape], dtype, device, update=paper(1), projection=p)

    assert error(*result) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MATRICES)
def test_mini_has_one_factor_per_matrix(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    p = drawn(1, dtype, device)
    result = run_both(MINI, HYPER, MATRICES[shape], dtype, device, update=paper(None), projection=p)

    assert error(*result) < TOLERANCES[dtype]


def test_a_stored_projection_changes_nothing_but_the_state(device: torch.device) -> None:
    weights, names = [], []
    for stores in (False, True):
        param = torch.nn.Parameter(torch.ones(40, 20, device=device))
        hyper = {**HYPER, "rank": RANK, "stored_projection": stores, "projection_update_interval": 2}
        optimizer = build(APOLLO, [(param, Role.MATRIX)], hyper)
        for step in range(5):
            param.grad = gradient((40, 20), step, torch.float32).to(device)
            optimizer.step()
        weights.append(param.detach())
        names.append(set(optimizer.state[param]))

    assert torch.equal(*weights)
    assert names[1] - names[0] == {"projection"}


def test_equal_shapes_have_projections_of_their_own(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.ones(40, 20, device=device)) for _ in range(2)]
    hyper = {**HYPER, "rank": RANK, "stored_projection": True}
    optimizer = build(APOLLO, [(param, Role.MATRIX) for param in params], hyper)
    for param in params:
        param.grad = gradient((40, 20), 0, torch.float32).to(device)
    optimizer.step()
    first, second = (optimizer.state[param]["projection"] for param in params)

    assert not torch.equal(first, second)


def test_layerwise_parameters_have_projections_of_their_own(device: torch.device) -> None:
    """Each has an optimizer of its own there; `first_number` tells them apart."""
    drawn_for = []
    for number in range(2):
        param = torch.nn.Parameter(torch.ones(40, 20, device=device))
        group = {"params": [param], "role": Role.MATRIX.value, "first_number": number}
        optimizer = APOLLO.build(
            [group], {**APOLLO.defaults, **HYPER, "rank": RANK, "stored_projection": True}
        )
        param.grad = gradient((40, 20), 0, torch.float32).to(device)
        optimizer.step()
        drawn_for.append(optimizer.state[param]["projection"])

    assert not torch.equal(*drawn_for)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stores", [False, True], ids=["drawn", "stored"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.name))
def test_is_deterministic_and_resumes_bitwise(
    entry: Any, stores: bool, dtype: torch.dtype, device: torch.device
) -> None:
    hyper = {**HYPER, "projection_update_interval": 3, "stored_projection": stores}
    check_deterministic_and_resumes(entry, hyper, dtype, device)


def test_a_rank_of_zero_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="rank is 0; accepted: a number above 0"):
        build(APOLLO, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {"rank": 0})
