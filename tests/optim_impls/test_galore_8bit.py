"""GaLore with 8-bit AdamW: equal to the paper's algorithm in float64 with quantised moments; its bytes as declared."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.optim_impls.checks import (
    DTYPES,
    SHAPES,
    build,
    check_bytes,
    check_deterministic_and_resumes,
    make_params,
    set_grads,
)
from tests.optim_impls.quantised_checks import InStep, check_transients_are_within_the_declared, round_trip
from whatfits.estimator.memory.optimizers.own_quantised import OwnGaLore8bit
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.galore_8bit import DEFAULTS, ENTRY, GaLore8bit
from whatfits.optim_impls.projection import PROJECTORS, low_rank_of, tall

STEPS = 20
HYPER: dict[str, Any] = {
    "lr": 1e-2,
    "weight_decay": 0.1,
    "rank": 48,
    "projection_update_interval": 7,
    "projection_scale": 0.5,
}


def expected_after(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Algorithm 2 with AdamW, in float64; moments pass through 8 bits after each step where there are 4096 of them."""
    m, n = param.shape
    rank, is_right = min(HYPER["rank"], m, n), m >= n
    weights = param.detach().double()
    low_shape = (m, rank) if is_right else (rank, n)
    exp_avg, exp_avg_sq = torch.zeros(low_shape).double(), torch.zeros(low_shape).double()
    projection = torch.empty(0)
    for step in range(STEPS):
        set_grads([param], step)
        assert param.grad is not None
        grad = param.grad.double()
        if step % HYPER["projection_update_interval"] == 0:
            # Signs of singular vectors are free, and the moments keep them: they are those of an SVD in fp32.
            u, _, vh = torch.linalg.svd(grad.float(), full_matrices=False)
            projection = (vh[:rank] if is_right else u[:, :rank]).double()
        low = grad @ projection.T if is_right else projection.T @ grad
        exp_avg = 0.9 * exp_avg + 0.1 * low
        exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * low**2
        direction = exp_avg / (1 - 0.9 ** (step + 1))
        direction = direction / ((exp_avg_sq / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        update = direction @ projection if is_right else projection @ direction
        weights = (
            weights * (1 - HYPER["lr"] * HYPER["weight_decay"])
            - HYPER["lr"] * HYPER["projection_scale"] * update
        )
        weights = weights.to(dtype).double()
        if exp_avg.numel() >= 4096:
            exp_avg = round_trip(exp_avg, is_signed=True)
            exp_avg_sq = round_trip(exp_avg_sq, is_signed=False)
    return weights


@pytest.mark.parametrize("shape", ["wide", "tall", "square", "odd", "tiny"])
def test_equals_the_algorithm_in_float64(shape: str) -> None:
    """A code may differ where fp32 rounds across a boundary."""
    (param, _), *_ = params = make_params([SHAPES[shape]], torch.float32, torch.device("cpu"))
    expected = expected_after(param, torch.float32)
    optimizer = build(ENTRY, params, HYPER)
    for step in range(STEPS):
        set_grads([param], step)
        optimizer.step()

    off = (param.detach().double() - expected).abs()
    assert off.max() < 2e-2 * HYPER["lr"] * STEPS
    assert off.mean() < 1e-3 * HYPER["lr"] * STEPS


def test_bf16_is_the_same_within_its_rounding() -> None:
    (param, _), *_ = params = make_params([SHAPES["tall"]], torch.bfloat16, torch.device("cpu"))
    start = param.detach().double()
    expected = expected_after(param, torch.bfloat16)
    optimizer = build(ENTRY, params, HYPER)
    for step in range(STEPS):
        set_grads([param], step)
        optimizer.step()

    moved = (expected - start).norm()
    assert (param.detach().double() - expected).norm() < 0.1 * moved


@pytest.mark.parametrize("subspace", PROJECTORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes(subspace: str, dtype: torch.dtype, device: torch.device) -> None:
    hyper = {"rank": 16, "projection_update_interval": 3, "subspace": subspace}
    check_deterministic_and_resumes(ENTRY, hyper, dtype, device)


@pytest.mark.parametrize("subspace", ["randomised", "warm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["wide", "tall", "square", "odd tall"])
def test_other_subspaces_hold_no_more_than_declared(
    subspace: str, dtype: torch.dtype, shape: str, device: torch.device
) -> None:
    hyper = {"rank": 16, "projection_update_interval": 2, "subspace": subspace}
    check_transients_are_within_the_declared(ENTRY, hyper, shape, dtype, device)


@pytest.mark.parametrize("subspace", ["randomised", "warm"])
def test_other_subspaces_keep_a_gradient_of_low_rank(subspace: str, device: torch.device) -> None:
    """A gradient of rank 3 lies in each subspace that is found for it."""
    grad = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    grad = (grad @ torch.randn(3, 40, generator=torch.Generator().manual_seed(1))).to(device)
    for matrix in (grad, grad.T.contiguous()):
        param = torch.nn.Parameter(torch.zeros_like(matrix))
        optimizer = build(ENTRY, [(param, Role.MATRIX)], {"rank": 3, "subspace": subspace})
        param.grad = matrix
        optimizer.step()
        state = optimizer.state[param]
        low = low_rank_of(tuple(matrix.shape), 3, as_it_lies=True)
        assert isinstance(optimizer, GaLore8bit)
        p = low.as_rows(optimizer.projection(state, low, torch.float32))

        kept = tall(matrix) @ p.T @ p
        assert (kept - tall(matrix)).norm() < 1e-4 * matrix.norm()


@pytest.mark.parametrize("rank", [4, 2000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_bytes_are_as_declared(dtype: torch.dtype, shape: str, rank: int, device: torch.device) -> None:
    if shape == "several pieces" and rank > 4:
        pytest.skip("an SVD of 1500 x 1402 takes seconds, and shows nothing that smaller ones do not")
    hyper = {"rank": rank, "projection_update_interval": 2}
    program = OwnGaLore8bit(param_dtype_bytes=dtype.itemsize, rank=rank, update_interval=2)
    check_bytes(ENTRY, hyper, InStep(program), shape, dtype, device)


def test_projection_holds_no_more_than_itself() -> None:
    """A slice of the SVD's factor would keep all of it alive."""
    (param, _), *_ = params = make_params([SHAPES["wide"]], torch.float32, torch.device("cpu"))
    optimizer = build(ENTRY, params, {"rank": 4})
    set_grads([param], 0)
    optimizer.step()
    projection = optimizer.state[param]["projection"]

    assert projection.untyped_storage().nbytes() == 64 * 4 * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", -1.0),
        ("rank", 0),
        ("projection_update_interval", 0),
        ("projection_scale", 0.0),
        ("subspace", "qr"),
        ("chunk_size", 0),
    ],
)
def test_refuses_by_name(name: str, value: object) -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "role": Role.VECTOR}
    with pytest.raises(ValueError, match=name):
        GaLore8bit([group], **{**DEFAULTS, name: value})
