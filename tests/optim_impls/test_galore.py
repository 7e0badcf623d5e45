"""GaLore: equal to the paper's algorithm in float64 and to galore-torch; deterministic; resumes bitwise."""

import re
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
    error,
    gradient,
    leading_directions,
    run_both,
)
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.galore import ENTRY
from whatfits.optim_impls.projection import PROJECTORS

BETAS = (0.9, 0.99)
HYPER: dict[str, Any] = {
    "lr": 0.05,
    "betas": BETAS,
    "weight_decay": 0.1,
    "rank": RANK,
    "projection_update_interval": INTERVAL,
    "projection_scale": 0.5,
}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.06}


def refreshed(grad: Tensor, step: int, p: Tensor | None) -> Tensor:
    return leading_directions(grad, RANK) if p is None or (step - 1) % INTERVAL == 0 else p


def paper(weights: Tensor, grad: Tensor, state: dict[str, Any], p: Tensor, step: int) -> Tensor:
    """arXiv:2403.03507, Algorithm 2, with decoupled weight decay."""
    update = adam(grad @ p.T, state, step, BETAS, 1e-8) @ p
    return (1 - 0.05 * 0.1) * weights - 0.05 * 0.5 * update


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MATRICES)
def test_steps_are_those_of_the_paper(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    result = run_both(ENTRY, HYPER, MATRICES[shape], dtype, device, update=paper, projection=refreshed)

    assert error(*result) < TOLERANCES[dtype]


@pytest.mark.parametrize("shape", sorted(set(MATRICES) - {"rank above the shorter side"}))
def test_steps_are_those_of_galore_torch(shape: str) -> None:
    galore_torch = pytest.importorskip("galore_torch")
    sizes = MATRICES[shape]
    start = torch.randn(sizes, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    # eps is added before the bias is corrected there, so that it must not matter here.
    hyper = {**HYPER, "eps": 1e-12, "weight_decay": 0.0}
    optimizer = build(ENTRY, [(ours, Role.MATRIX)], hyper)
    group = {"params": [theirs], "rank": RANK, "update_proj_gap": INTERVAL, "scale": 0.5, "proj_type": "std"}
    reference = galore_torch.GaLoreAdamW(
        [group], lr=0.05, betas=BETAS, eps=1e-12, no_deprecation_warning=True
    )
    for step in range(STEPS):
        for param in (ours, theirs):
            param.grad = gradient(sizes, step, torch.float32)
        optimizer.step()
        reference.step()

    assert error(start, ours.detach(), theirs.detach()) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("subspace", PROJECTORS)
def test_is_deterministic_and_resumes_bitwise(
    subspace: str, dtype: torch.dtype, device: torch.device
) -> None:
    hyper = {**HYPER, "subspace": subspace, "projection_update_interval": 2}
    check_deterministic_and_resumes(ENTRY, hyper, dtype, device)


def test_other_roles_get_adamw(device: torch.device) -> None:
    start = torch.randn(40, 20, device=device)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = build(ENTRY, [(ours, Role.EMBEDDING)], HYPER)
    reference = torch.optim.AdamW([theirs], lr=0.05, betas=BETAS, eps=1e-8, weight_decay=0.1)
    for step in range(5):
        for param in (ours, theirs):
            param.grad = gradient((40, 20), step, torch.float32).to(device)
        optimizer.step()
        reference.step()

    torch.testing.assert_close(ours, theirs)


def test_projection_holds_no_factor_of_the_svd(device: torch.device) -> None:
    param = torch.nn.Parameter(torch.randn(90, 60, device=device))
    optimizer = build(ENTRY, [(param, Role.MATRIX)], HYPER)
    param.grad = torch.randn(90, 60, device=device)
    optimizer.step()

    assert optimizer.state[param]["projection"].untyped_storage().nbytes() == 4 * RANK * 60


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("betas", (1.0, 0.9)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("rank", 0),
        ("projection_update_interval", 0),
        ("projection_scale", 0.0),
        ("subspace", "qr"),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(
        ValueError, match=rf"{name}(\[0\])? is {re.escape(repr(value).split(',')[0].strip('('))}"
    ):
        build(ENTRY, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {name: value})
