"""SubTrack++: equal to the paper's algorithm in float64, where every matrix is formed; a turn follows the gradient."""

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
    leading_directions,
    limited,
    run_both,
)
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.subtrack import ENTRY, turn_subspace

BETAS = (0.9, 0.99)
LR, SCALE, STEP_SIZE = 0.02, 0.5, 1e-4
HYPER: dict[str, Any] = {
    "lr": LR,
    "betas": BETAS,
    "rank": RANK,
    "projection_update_interval": INTERVAL,
    "projection_scale": SCALE,
    "subspace_step_size": STEP_SIZE,
}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
WITH_RESIDUAL = sorted(set(MATRICES) - {"rank above the shorter side"})


def turned(grad: Tensor, p: Tensor, step_size: float) -> Tensor:
    """The geodesic as the paper writes it, of S = P^T and G^T: S' = [S v, u] [cos; sin] v^T + S (1 - v v^T)."""
    s, g = p.T, grad.T
    a = s.T @ g
    tangent = 2 * (g - s @ a) @ a.T
    u, sigma, vh = torch.linalg.svd(tangent, full_matrices=False)
    u, v, angle = u[:, :1], vh[:1].T, sigma[0] * step_size
    new: Tensor = (
        s @ v @ v.T * angle.cos()
        + u @ v.T * angle.sin()
        + s @ (torch.eye(v.shape[0], dtype=v.dtype) - v @ v.T)
    ).T
    return new


def first(grad: Tensor, step: int, p: Tensor | None) -> Tensor:
    return leading_directions(grad, RANK) if p is None else p


def paper(weights: Tensor, grad: Tensor, state: dict[str, Any], p: Tensor, step: int) -> Tensor:
    """arXiv:2502.01586, Algorithm 1. P of the first step is given, later ones are found here."""
    seen = step - 1
    p = state.get("p", p)
    if seen and seen % INTERVAL == 0:
        new = turned(grad, p, STEP_SIZE)
        change = p @ new.T
        m, v = state["m"] / (1 - BETAS[0] ** seen), state["v"] / (1 - BETAS[1] ** seen)
        v = ((v - m**2) @ change**2 + (m @ change) ** 2).abs()
        state.update(m=m @ change * (1 - BETAS[0] ** seen), v=v * (1 - BETAS[1] ** seen))
        p = new
    state["p"] = p
    low = grad @ p.T
    update = adam(low, state, step, BETAS, 1e-8)
    factors = update.norm(dim=1, keepdim=True) / low.norm(dim=1, keepdim=True)
    residual = limited(factors * (grad - low @ p), state, bias(step, BETAS))
    new_weights: Tensor = weights - LR * SCALE * (update @ p + residual)
    return new_weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", WITH_RESIDUAL)
def test_steps_are_those_of_the_paper(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    result = run_both(ENTRY, HYPER, MATRICES[shape], dtype, device, update=paper, projection=first)

    assert error(*result) < TOLERANCES[dtype]


@pytest.mark.parametrize("shape", [(80, 30), (30, 30)], ids=str)
def test_a_turn_keeps_rows_orthonormal_and_catches_more_of_the_gradient(
    shape: tuple[int, int], device: torch.device
) -> None:
    grad = gradient(shape, 0, torch.float32).to(device)
    before = torch.linalg.qr(torch.randn(shape[1], 4, generator=torch.Generator().manual_seed(0)))[0].T
    before = before.contiguous().to(device)
    caught = [float((grad @ before.T).norm())]
    p = before
    for _ in range(5):
        p = turn_subspace(grad, p, step_size=1e-4)
        caught.append(float((grad @ p.T).norm()))

    torch.testing.assert_close((p @ p.T).cpu(), torch.eye(4), rtol=0, atol=1e-5)
    assert caught == sorted(caught)
    assert caught[-1] > 1.1 * caught[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes_bitwise(dtype: torch.dtype, device: torch.device) -> None:
    check_deterministic_and_resumes(ENTRY, {**HYPER, "projection_update_interval": 2}, dtype, device)


@pytest.mark.parametrize(("name", "value"), [("subspace_step_size", 0), ("rank", 0), ("projection_scale", 0)])
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        build(ENTRY, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {name: value})
