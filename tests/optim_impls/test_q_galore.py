"""Q-GaLore: equal to the paper's algorithm in float64, on float and on integer weights; its bytes as declared."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from whatfits.estimator.memory.optimizers.own_quantised_weights import OwnQGaLore
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.int8_weights import Int8Linear, int8_update_bytes
from whatfits.optim_impls.projection import PROJECTORS, low_rank_of, tall
from whatfits.optim_impls.q_galore import DEFAULTS, ENTRY, QGaLore
from whatfits.profiler.trace.optimizer_step import peak_of_step, trace_optimizer_step

STEPS = 20
HYPER: dict[str, Any] = {
    "lr": 1e-2,
    "weight_decay": 0.1,
    "rank": 48,
    "projection_update_interval": 7,
    "projection_scale": 0.5,
}


def int4_round_trip(x: Tensor) -> Tensor:
    """Uniform quantisation to 16 levels by groups of 256, from its definition, in float64."""
    parts = []
    for group in torch.split(x.double().reshape(-1), 256):
        low, high = min(group.min().item(), 0.0), max(group.max().item(), 0.0)
        scale = (high - low) / 15
        zero = round(-low / scale)
        parts.append(((group / scale + zero).round().clamp(0, 15) - zero) * scale)
    return torch.cat(parts).view(x.shape)


def expected_after(param: Tensor) -> Tensor:
    """Algorithm 1 in float64 with refreshes at fixed steps; moments pass through 8 bits, P through 4."""
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
            projection = int4_round_trip(vh[:rank] if is_right else u[:, :rank])
        low = grad @ projection.T if is_right else projection.T @ grad
        exp_avg = 0.9 * exp_avg + 0.1 * low
        exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * low**2
        direction = exp_avg / (1 - 0.9 ** (step + 1))
        direction = direction / ((exp_avg_sq / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        update = direction @ projection if is_right else projection @ direction
        weights = weights * (1 - HYPER["lr"] * HYPER["weight_decay"])
        weights = weights - HYPER["lr"] * HYPER["projection_scale"] * update
        if exp_avg.numel() >= 4096:
            exp_avg = round_trip(exp_avg, is_signed=True)
            exp_avg_sq = round_trip(exp_avg_sq, is_signed=False)
    return weights


def make_layer(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear(nn.Linear(shape[1], shape[0], bias=False).to(device, dtype))


@pytest.mark.parametrize("shape", ["wide", "tall", "square", "odd", "tiny"])
def test_equals_the_algorithm_in_float64(shape: str) -> None:
    """A code may differ where fp32 rounds across a boundary."""
    (param, _), *_ = params = make_params([SHAPES[shape]], torch.float32, torch.device("cpu"))
    expected = expected_after(param)
    optimizer = build(ENTRY, params, HYPER)
    for step in range(STEPS):
        set_grads([param], step)
        optimizer.step()

    off = (param.detach().double() - expected).abs()
    assert off.max() < 2e-2 * HYPER["lr"] * STEPS
    assert off.mean() < 1e-3 * HYPER["lr"] * STEPS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (300, 100)])
def test_integers_follow_float_weights(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Each rounding moves a weight by less than a step, to either side: the mean distance grows as a root."""
    layer = make_layer(device, shape, dtype)
    start = layer.int8.dequantize(torch.float32)
    param = nn.Parameter(start.to(dtype).clone())
    results = []
    for weight in (layer.weight, param):
        optimizer = build(ENTRY, [(weight, Role.MATRIX)], HYPER)
        for step in range(STEPS):
            set_grads([weight], step)
            optimizer.step()
    results = [layer.int8.dequantize(torch.float32), param.detach().float()]

    off, moved = results[0] - results[1], results[1] - start
    assert off.pow(2).mean().sqrt() < 1.0 * layer.scale.max() * STEPS**0.5
    assert abs(off.mean()) < 0.1 * layer.scale.max()
    assert torch.nn.functional.cosine_similarity((results[0] - start).flatten(), moved.flatten(), dim=0) > 0.9


def test_integers_train_a_layer(device: torch.device) -> None:
    torch.manual_seed(0)
    target = torch.randn(32, 48, device=device) / 7
    layer = make_layer(device, (32, 48))
    optimizer = build(
        ENTRY,
        [(layer.weight, Role.MATRIX)],
        {"rank": 16, "lr": 2e-2, "projection_scale": 1.0, "projection_update_interval": 10},
    )
    losses = []
    for _ in range(150):
        x = torch.randn(64, 48, device=device)
        loss = (layer(x) - x @ target.T).square().mean()
        layer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.15 * losses[0]


@pytest.mark.parametrize(("changes", "expected"), [(False, 16), (True, 2)])
def test_interval_doubles_where_the_subspace_stays(
    device: torch.device, changes: bool, expected: int
) -> None:
    """Refreshes at 1, 3, 5, 7 (interval 4), 11, 15, 19 (interval 8), 27, 35, 43 (interval 16)."""
    param = nn.Parameter(torch.zeros(40, 30, device=device))
    optimizer = build(
        ENTRY, [(param, Role.MATRIX)], {"rank": 4, "projection_update_interval": 2, "alike_refreshes": 3}
    )
    for step in range(44):
        set_grads([param], step if changes else 0)
        optimizer.step()

    assert optimizer.state[param]["interval"] == expected


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


def lost_of(matrix: Tensor, subspace: str) -> float:
    """Share of a gradient of rank 3 that the first P of 4 bits does not keep."""
    param = torch.nn.Parameter(torch.zeros_like(matrix))
    optimizer = build(ENTRY, [(param, Role.MATRIX)], {"rank": 3, "subspace": subspace})
    assert isinstance(optimizer, QGaLore)
    param.grad = matrix
    optimizer.step()
    low = low_rank_of(tuple(matrix.shape), 3, as_it_lies=True)
    p = low.as_rows(optimizer.projection(optimizer.state[param], low, torch.float32))
    return float((tall(matrix) @ p.T @ p - tall(matrix)).norm() / matrix.norm())


@pytest.mark.parametrize("subspace", ["randomised", "warm"])
def test_other_subspaces_keep_what_that_of_an_svd_keeps(subspace: str, device: torch.device) -> None:
    """The loss is that of 4 bits; a subspace that is another one would lose most of the gradient."""
    grad = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    grad = (grad @ torch.randn(3, 40, generator=torch.Generator().manual_seed(1))).to(device)
    for matrix in (grad, grad.T.contiguous()):
        assert lost_of(matrix, subspace) < 1.2 * lost_of(matrix, "svd") < 0.2


def test_integers_resume_bitwise(device: torch.device) -> None:
    results = []
    for break_at in (None, 4):
        model: nn.Module = nn.Sequential(make_layer(device, (64, 80)), make_layer(device, (64, 80)))

        def start(model: nn.Module) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
            weights = list(model.parameters())
            group = {"params": weights, "role": Role.MATRIX.value}
            return weights, ENTRY.build([group], {**DEFAULTS, "rank": 16, "projection_update_interval": 3})

        weights, optimizer = start(model)
        for step in range(7):
            if step == break_at:
                file = io.BytesIO()
                torch.save((model.state_dict(), optimizer.state_dict()), file)
                file.seek(0)
                model = nn.Sequential(make_layer(device, (64, 80)), make_layer(device, (64, 80)))
                weights, optimizer = start(model)
                of_model, of_optimizer = torch.load(file, weights_only=True)
                model.load_state_dict(of_model)
                optimizer.load_state_dict(of_optimizer)
            set_grads(weights, step)
            optimizer.step()
        results.append([buffer.clone() for buffer in model.buffers()])

    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    # Equal layers with unequal gradients part, and so do the draws they are rounded with.
    assert not torch.equal(results[0][0], results[0][3])


@pytest.mark.parametrize("rank", [4, 2000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_bytes_are_as_declared(dtype: torch.dtype, shape: str, rank: int, device: torch.device) -> None:
    if shape == "several pieces" and rank > 4:
        pytest.skip("an SVD of 1500 x 1402 takes seconds, and shows nothing that smaller ones do not")
    hyper = {"rank": rank, "projection_update_interval": 2}
    program = OwnQGaLore(param_dtype_bytes=dtype.itemsize, rank=rank, update_interval=2)
    check_bytes(ENTRY, hyper, InStep(program), shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 160), (300, 100), (1500, 1402)])
def test_bytes_of_an_update_of_integers(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Besides P and the direction, which are alive with them, two pieces of the weights."""
    hyper = {**DEFAULTS, "rank": 16}
    layer = make_layer(device, shape, dtype)
    optimizer = build(ENTRY, [(layer.weight, Role.MATRIX)], hyper)
    for step in range(2):
        set_grads([layer.weight], step)
        peak = peak_of_step(trace_optimizer_step(optimizer))
    steady = ENTRY.declaration.transient_bytes(Parameter(shape, dtype, Role.MATRIX), hyper, Phase.STEADY)
    low_rank = 16 * sum(shape) * dtype.itemsize

    assert peak == max(steady, low_rank + int8_update_bytes(shape, 128))


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("rank", 0), ("likeness_threshold", 1.0), ("alike_refreshes", 0)]
)
def test_refuses_by_name(name: str, value: object) -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "role": Role.VECTOR}
    with pytest.raises(ValueError, match=name):
        QGaLore([group], **{**DEFAULTS, name: value})
