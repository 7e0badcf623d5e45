"""Fira: equal to the paper's algorithm in float64, where the residual is formed, and to pytorch-optimizer's form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim_impls.checks import DTYPES, build, check_deterministic_and_resumes
from tests.optim_impls.low_rank_checks import (
    INTERVAL,
    MATRICES,
    RANK,
    STEPS,
    adam,
    bias,
    error,
    gradient,
    leading_directions,
    limited,
    run_both,
)
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.fira import ENTRY

BETAS = (0.9, 0.99)
SCALE = 0.5
LR = 0.02
HYPER: dict[str, Any] = {
    "lr": LR,
    "betas": BETAS,
    "rank": RANK,
    "projection_update_interval": INTERVAL,
    "projection_scale": SCALE,
}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.08}
WITH_RESIDUAL = sorted(set(MATRICES) - {"rank above the shorter side"})


def refreshed(grad: Tensor, step: int, p: Tensor | None) -> Tensor:
    return leading_directions(grad, RANK) if p is None or (step - 1) % INTERVAL == 0 else p


def paper(weights: Tensor, grad: Tensor, state: dict[str, Any], p: Tensor, step: int) -> Tensor:
    """arXiv:2410.01623, Algorithm 1: alpha scales both parts."""
    low = grad @ p.T
    update = adam(low, state, step, BETAS, 1e-8)
    factors = update.norm(dim=1, keepdim=True) / low.norm(dim=1, keepdim=True)
    residual = limited(factors * (grad - low @ p), state, bias(step, BETAS))
    return weights - LR * SCALE * (update @ p + residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", WITH_RESIDUAL)
def test_steps_are_those_of_the_paper(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    result = run_both(ENTRY, HYPER, MATRICES[shape], dtype, device, update=paper, projection=refreshed)

    assert error(*result) < TOLERANCES[dtype]


@pytest.mark.parametrize("shape", WITH_RESIDUAL)
def test_the_released_form_is_pytorch_optimizers(shape: str) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    sizes = MATRICES[shape]
    start = torch.randn(sizes, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    # One projection for all steps: that code counts refreshes from 1.
    hyper = {**HYPER, "eps": 1e-12, "scales_residual": False, "projection_update_interval": 100}
    optimizer = build(ENTRY, [(ours, Role.MATRIX)], hyper)
    low = {"rank": RANK, "update_proj_gap": 100, "scale": SCALE, "projection_type": "std"}
    reference = library.Fira([{"params": [theirs], **low}], lr=LR, betas=BETAS, eps=1e-12)
    for step in range(STEPS):
        for param in (ours, theirs):
            param.grad = gradient(sizes, step, torch.float32)
        optimizer.step()
        reference.step()

    assert error(start, ours.detach(), theirs.detach()) < 1e-4


def test_without_a_residual_it_is_galore(device: torch.device) -> None:
    """With the full rank nothing is dropped."""
    from whatfits.optim_impls.galore import ENTRY as GALORE

    weights = []
    for entry in (ENTRY, GALORE):
        param = torch.nn.Parameter(torch.ones(30, 6, device=device))
        optimizer = build(entry, [(param, Role.MATRIX)], {**HYPER, "rank": 6})
        for step in range(5):
            param.grad = gradient((30, 6), step, torch.float32).to(device)
            optimizer.step()
        weights.append(param.detach())

    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zeros_first_limits_nothing_later(device: torch.device) -> None:
    moved = []
    for zeros_first in (True, False):
        param = torch.nn.Parameter(torch.zeros(30, 20, device=device))
        optimizer = build(
            ENTRY, [(param, Role.MATRIX)], {**HYPER, "rank": 2, "projection_update_interval": 1}
        )
        if zeros_first:
            param.grad = torch.zeros(30, 20, device=device)
            optimizer.step()
        param.grad = gradient((30, 20), 0, torch.float32).to(device)
        optimizer.step()
        moved.append(float(param.detach().norm()))

    assert moved[0] > 0.5 * moved[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes_bitwise(dtype: torch.dtype, device: torch.device) -> None:
    check_deterministic_and_resumes(ENTRY, {**HYPER, "projection_update_interval": 2}, dtype, device)


def test_a_scale_of_zero_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="projection_scale is 0"):
        build(ENTRY, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {"projection_scale": 0})
