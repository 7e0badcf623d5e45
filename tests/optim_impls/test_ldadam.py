"""LDAdam: equal to the paper's algorithm in float64, where every matrix is formed; deterministic; resumes bitwise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim_impls.checks import DTYPES, build, check_deterministic_and_resumes
from tests.optim_impls.low_rank_checks import (
    MATRICES,
    RANK,
    STEPS,
    error,
    gradient,
    leading_directions,
    orient,
    run_both,
)
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.ldadam import ENTRY

BETAS = (0.8, 0.99)
RHO = 0.7
LR = 0.02
HYPER: dict[str, Any] = {"lr": LR, "betas": BETAS, "weight_decay": 0.1, "rank": RANK, "rho": RHO}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def paper(*, feeds_back: bool) -> Any:
    """arXiv:2410.16103, Algorithm 1. P of the first step is given, later ones are found here."""

    def update(weights: Tensor, grad: Tensor, state: dict[str, Any], p: Tensor, step: int) -> Tensor:
        seen, (beta1, beta2) = step - 1, BETAS
        total = grad + state.get("error", 0.0)
        if seen:
            old, m, v = state["p"], state["m"], state["v"]
            corrected, corrected_sq = m / (1 - beta1**seen), v / (1 - beta2**seen)
            b = RHO * corrected @ old + (1 - RHO) * total
            p = torch.linalg.qr(b.T @ (b @ old.T))[0].T
            change = old @ p.T
            moved = m @ change
            v = ((corrected_sq - corrected**2) @ change**2 + (corrected @ change) ** 2).abs() * (
                1 - beta2**seen
            )
        else:
            old, m, moved, v = p, 0.0, 0.0, 0.0
        low = total @ p.T
        lost = beta1 / (1 - beta1) * (m @ old - moved @ p) if seen else 0.0
        state["error"] = total - low @ p + lost if feeds_back else 0.0
        m, v = beta1 * moved + (1 - beta1) * low, beta2 * v + (1 - beta2) * low**2
        state.update(p=p, m=m, v=v)
        direction = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + 1e-8)
        new: Tensor = (1 - LR * 0.1) * weights - LR * direction @ p
        return new

    return update


def first(grad: Tensor, step: int, p: Tensor | None) -> Tensor:
    return leading_directions(grad, RANK) if p is None else p


@pytest.mark.parametrize("feeds_back", [True, False], ids=["with error", "without"])
@pytest.mark.parametrize("shape", MATRICES)
def test_steps_are_those_of_the_paper(shape: str, feeds_back: bool, device: torch.device) -> None:
    hyper = {**HYPER, "error_feedback": feeds_back}
    update = paper(feeds_back=feeds_back)
    result = run_both(ENTRY, hyper, MATRICES[shape], torch.float32, device, update=update, projection=first)

    assert error(*result) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("shape", MATRICES)
def test_lower_precision_goes_the_same_way(shape: str, device: torch.device) -> None:
    """Directions among noise depend on every bit; with gradients of the rank's dimension or less they do not."""
    start = torch.zeros(MATRICES[shape])
    weights = []
    for dtype in (torch.float32, torch.bfloat16):
        param = torch.nn.Parameter(start.clone().to(device, dtype))
        optimizer = build(ENTRY, [(param, Role.MATRIX)], {**HYPER, "rank": 2, "error_feedback": False})
        m, n = MATRICES[shape]
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            side = torch.linspace(-1, 1, n)
            strong = torch.randn(m, 1, generator=generator) * side + torch.randn(m, 1, generator=generator)
            param.grad = strong.to(device, dtype)
            optimizer.step()
        weights.append(param.detach().cpu().float())

    assert error(start, weights[1], weights[0]) < TOLERANCES[torch.bfloat16]


def test_the_error_is_what_the_weights_have_not_seen(device: torch.device) -> None:
    """After the first step: the gradient less its projection."""
    param = torch.nn.Parameter(torch.ones(30, 20, device=device))
    optimizer = build(ENTRY, [(param, Role.MATRIX)], HYPER)
    grad = gradient((30, 20), 0, torch.float32)
    param.grad = grad.to(device)
    optimizer.step()
    p = leading_directions(grad, RANK)
    dropped = grad.double() - orient(grad.double()) @ p.T @ p

    torch.testing.assert_close(optimizer.state[param]["error"].cpu().double(), dropped, rtol=0, atol=1e-4)
    assert torch.equal(param.grad.cpu(), grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes_bitwise(dtype: torch.dtype, device: torch.device) -> None:
    check_deterministic_and_resumes(ENTRY, HYPER, dtype, device)


@pytest.mark.parametrize(("name", "value"), [("rho", 1.0), ("rank", 0), ("eps", 0.0)])
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        build(ENTRY, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {name: value})
