"""Float64 references of the low-rank methods, written from the papers' equations with full-size tensors."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.optim_impls.checks import build
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.entry import OptimizerEntry

MATRICES: dict[str, tuple[int, int]] = {
    "wide": (24, 70),
    "tall": (70, 24),
    "square": (32, 32),
    "odd": (61, 15),
    "rank above the shorter side": (5, 40),
}
STEPS = 20
INTERVAL = 7
RANK = 8

Update = Callable[[Tensor, Tensor, dict[str, Any], Tensor, int], Tensor]
"""From weights, gradient, state, P (r x M) and step the new weights; all with the longer side first, in float64."""


def gradient(shape: tuple[int, int], step: int, dtype: torch.dtype) -> Tensor:
    """A gradient with a few strong directions, as those of networks are."""
    generator = torch.Generator().manual_seed(100 + step)
    m, n = shape
    strong = torch.randn(m, 3, generator=generator) @ torch.randn(3, n, generator=generator)
    return (strong + torch.randn(m, n, generator=generator)).to(dtype)


def leading_directions(grad: Tensor, rank: int) -> Tensor:
    """P of the shorter side: r x M with the longer side first."""
    u, _, vh = torch.linalg.svd(grad.float(), full_matrices=False)
    p: Tensor = vh[:rank] if grad.shape[0] >= grad.shape[1] else u[:, :rank].T
    return p.to(grad.dtype).double()


def adam(low: Tensor, state: dict[str, Any], step: int, betas: tuple[float, float], eps: float) -> Tensor:
    """m / (sqrt(v) + eps), bias corrected."""
    m = betas[0] * state.get("m", torch.zeros_like(low)) + (1 - betas[0]) * low
    v = betas[1] * state.get("v", torch.zeros_like(low)) + (1 - betas[1]) * low**2
    state.update(m=m, v=v)
    direction: Tensor = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    return direction


def bias(step: int, betas: tuple[float, float]) -> float:
    """What turns m / sqrt(v) into the corrected one."""
    return math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)


def limited(update: Tensor, state: dict[str, Any], correction: float) -> Tensor:
    """The update with its uncorrected norm grown by 1% at most."""
    norm = update.norm() / correction
    last = state.get("norm")
    if last is not None and norm > 1.01 * last:
        update, norm = update * (1.01 * last / norm), 1.01 * last
    state["norm"] = norm
    return update


def orient(matrix: Tensor) -> Tensor:
    """The longer side first."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def run_both(
    entry: OptimizerEntry,
    hyper: Mapping[str, Any],
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    update: Update,
    projection: Callable[[Tensor, int, Tensor | None], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights before, after steps of ours, and after those of the reference."""
    # As small as weights of networks, so that rounding to bf16 is small beside what training changes.
    start = (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    param = torch.nn.Parameter(start.clone().to(device))
    optimizer = build(entry, [(param, Role.MATRIX)], hyper)
    weights, state, p = start.double(), dict[str, Any](), None
    for step in range(1, STEPS + 1):
        grad = gradient(shape, step, dtype)
        param.grad = grad.to(device)
        optimizer.step()
        p = projection(grad, step, p)
        new = update(orient(weights), orient(grad.double()), state, p, step)
        weights = new if shape[0] >= shape[1] else new.T
    return start.double(), param.detach().cpu().double(), weights


def error(start: Tensor, ours: Tensor, expected: Tensor) -> float:
    """Size of the difference as a part of what training changed."""
    return float((ours - expected).norm() / (expected - start).norm())
