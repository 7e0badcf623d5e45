"""Q-APOLLO and its Mini form: equal to the paper's algorithm in float64, on float and on integer weights; their bytes."""

from itertools import pairwise
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
from tests.optim_impls.quantised_checks import InStep, round_trip
from whatfits.estimator.memory.optimizers.own_quantised_weights import OwnQApollo
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.int8_weights import Int8Linear
from whatfits.optim_impls.projection import low_rank_of, norms_in_pieces, norms_in_pieces_bytes
from whatfits.optim_impls.q_apollo import ENTRIES, QApollo
from whatfits.profiler.trace.optimizer_step import StorageLog, peak_of_step, trace_optimizer_step

BY_NAME = {entry.name: entry for entry in ENTRIES}
STEPS = 20
HYPER: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "projection_update_interval": 7}
RANKS = {"q_apollo": 48, "q_apollo_mini": 1}


@pytest.fixture(params=list(BY_NAME))
def entry(request: pytest.FixtureRequest) -> OptimizerEntry:
    return BY_NAME[request.param]


def hyper_of(entry: OptimizerEntry) -> dict[str, Any]:
    return {**entry.defaults, **HYPER, "rank": RANKS[entry.name]}


class Reference:
    """Algorithm 1 in float64, one matrix; P is given."""

    def __init__(self, param: Tensor, hyper: dict[str, Any]) -> None:
        self.weights, self.dtype, self.hyper = param.detach().double().cpu(), param.dtype, hyper
        self.is_right = param.shape[0] >= param.shape[1]
        self.moments: list[Tensor] = []
        self.step, self.last_norm = 0, 0.0

    def update(self, grad: Tensor, projection: Tensor) -> None:
        grad, projection, hyper = grad.double().cpu(), projection.double().cpu(), self.hyper
        low = grad @ projection.T if self.is_right else projection.T @ grad
        self.step += 1
        m, v = self.moments or [torch.zeros_like(low), torch.zeros_like(low)]
        m, v = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2
        direction = m / (1 - 0.9**self.step) / ((v / (1 - 0.999**self.step)).sqrt() + 1e-8)
        if hyper["tensor_wise"]:
            scaled = grad * direction.norm() / low.norm() * hyper["projection_scale"] ** 0.5
        else:
            axis = 1 if self.is_right else 0
            scaled = grad * (direction.norm(dim=axis, keepdim=True) / low.norm(dim=axis, keepdim=True))
            scaled = scaled * hyper["projection_scale"]
        norm = scaled.norm().item()
        if self.last_norm and norm > 1.01 * self.last_norm:
            scaled = scaled * (1.01 * self.last_norm / norm)
        self.last_norm = scaled.norm().item()
        self.weights = self.weights * (1 - hyper["lr"] * hyper["weight_decay"]) - hyper["lr"] * scaled
        self.weights = self.weights.to(self.dtype).double()
        if low.numel() >= 4096:
            m, v = round_trip(m, is_signed=True), round_trip(v, is_signed=False)
        self.moments = [m, v]


def run(entry: OptimizerEntry, param: Tensor) -> tuple[Reference, QApollo]:
    hyper = hyper_of(entry)
    optimizer = build(entry, [(param, Role.MATRIX)], hyper)  # type: ignore[list-item]  # a stand-in will do
    assert isinstance(optimizer, QApollo)
    reference = Reference(param, hyper)
    low = low_rank_of(tuple(param.shape), hyper["rank"], as_it_lies=True)
    for step in range(STEPS):
        set_grads([param], step)
        optimizer.step()
        assert param.grad is not None
        projection = optimizer.draw_projection(
            optimizer.state[param], low, optimizer.param_groups[0], param.grad
        )
        reference.update(param.grad, projection)
    return reference, optimizer


@pytest.mark.parametrize("shape", ["wide", "tall", "square", "odd", "tiny"])
def test_equals_the_algorithm_in_float64(entry: OptimizerEntry, shape: str, device: torch.device) -> None:
    """Factors are norms of many elements, which a code that fp32 rounds across a boundary hardly moves."""
    (param, _), *_ = make_params([SHAPES[shape]], torch.float32, device)
    start = param.detach().double().cpu()
    reference, _ = run(entry, param)

    off = (param.detach().double().cpu() - reference.weights).norm()
    assert off < 1e-3 * (reference.weights - start).norm()


def test_bf16_is_the_same_within_its_rounding(entry: OptimizerEntry) -> None:
    (param, _), *_ = make_params([SHAPES["tall"]], torch.bfloat16, torch.device("cpu"))
    start = param.detach().double()
    reference, _ = run(entry, param)

    # Where a weight is near the middle of two, it may be rounded to the other, and be off by as much later.
    assert (param.detach().double() - reference.weights).norm() < 0.1 * (reference.weights - start).norm()


def test_integers_follow_float_weights(entry: OptimizerEntry, device: torch.device) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 160, bias=False).to(device))
    start = layer.int8.dequantize(torch.float32)
    param = nn.Parameter(start.clone())
    optimizers = [
        build(entry, [(w, Role.MATRIX)], {**hyper_of(entry), "lr": 1e-2}) for w in (layer.weight, param)
    ]
    for step in range(STEPS):
        for weight, optimizer in zip((layer.weight, param), optimizers, strict=True):
            set_grads([weight], step)
            optimizer.step()
    got, expected = layer.int8.dequantize(torch.float32), param.detach()

    off = got - expected
    assert off.pow(2).mean().sqrt() < layer.scale.max() * STEPS**0.5
    cosine = torch.nn.functional.cosine_similarity(
        (got - start).flatten(), (expected - start).flatten(), dim=0
    )
    assert cosine > 0.9


def test_norm_grows_by_a_hundredth_at_most(entry: OptimizerEntry, device: torch.device) -> None:
    param = nn.Parameter(torch.zeros(40, 30, device=device))
    optimizer = build(entry, [(param, Role.MATRIX)], {"lr": 1.0})
    norms = []
    for step in range(8):
        before = param.detach().clone()
        # Moments of alternating gradients are small, and grow once the gradients agree.
        param.grad = torch.ones_like(param) * (1.0 if step > 3 else (-1.0) ** step)
        optimizer.step()
        norms.append((param.detach() - before).norm().item())

    growth = [norm / last for last, norm in pairwise(norms)]
    assert max(growth) == pytest.approx(1.01, rel=1e-4)
    assert growth[-1] == pytest.approx(1.01, rel=1e-4)


def test_projection_is_gaussian_its_own_and_lasts_an_interval(device: torch.device) -> None:
    hyper = {**BY_NAME["q_apollo"].defaults, "rank": 100, "projection_update_interval": 3}
    params = [nn.Parameter(torch.zeros(300, 200, device=device)) for _ in range(2)]
    optimizer = QApollo([{"params": params, "role": Role.MATRIX}], **hyper)
    low = low_rank_of((300, 200), 100, as_it_lies=True)
    drawn = []
    for step in range(4):
        set_grads(params, step)
        optimizer.step()
        drawn.append(
            [optimizer.draw_projection(optimizer.state[p], low, optimizer.param_groups[0], p) for p in params]
        )

    assert torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(drawn[0][0], drawn[3][0])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert drawn[0][0].mean().abs() < 5 * 0.1 / 20000**0.5
    assert drawn[0][0].std().item() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes(
    entry: OptimizerEntry, dtype: torch.dtype, device: torch.device
) -> None:
    check_deterministic_and_resumes(entry, {"projection_update_interval": 3}, dtype, device)


@pytest.mark.parametrize("rank", [1, 16, 2000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_bytes_are_as_declared(
    entry: OptimizerEntry, dtype: torch.dtype, shape: str, rank: int, device: torch.device
) -> None:
    hyper = {"rank": rank, "projection_update_interval": 2}
    program = OwnQApollo(
        param_dtype_bytes=dtype.itemsize,
        rank=rank,
        update_interval=2,
        scales_tensor=entry.defaults["tensor_wise"],
    )
    check_bytes(entry, hyper, InStep(program), shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (1500, 1402)])
def test_bytes_with_weight_decay_are_as_declared(
    entry: OptimizerEntry, dtype: torch.dtype, shape: tuple[int, int], device: torch.device
) -> None:
    """In bf16 the weights are changed in fp32 pieces, so that decay is not rounded away."""
    hyper = {**entry.defaults, "weight_decay": 0.1, "rank": 1}
    (param, _), *_ = params = make_params([(shape, Role.MATRIX)], dtype, device)
    optimizer = build(entry, params, hyper)
    for step in range(2):
        set_grads([param], step)
        peak = peak_of_step(trace_optimizer_step(optimizer))

    assert peak == entry.declaration.transient_bytes(
        Parameter(shape, dtype, Role.MATRIX), hyper, Phase.STEADY
    )


@pytest.mark.parametrize("name", BY_NAME)
def test_goes_on_after_a_first_gradient_of_zeros(name: str, device: torch.device) -> None:
    """A last norm of 0 limits nothing; a limit of 1.01 times 0 would hold the weights for good."""
    (param, _), *_ = params = make_params([SHAPES["tall"]], torch.float32, device)
    optimizer = build(BY_NAME[name], params, {})
    start = param.detach().clone()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    set_grads([param], 1)
    optimizer.step()

    assert not torch.equal(param.detach(), start)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (300, 7), (2000, 700), (3, 300000)])
@pytest.mark.parametrize("by_row", [True, False])
def test_channel_norms(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int], by_row: bool
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    expected = matrix.double().norm(dim=1 if by_row else 0)
    log = StorageLog(device.type, [matrix])
    with log:
        norms = norms_in_pieces(matrix, by_row=by_row)
    log.close()

    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)
    assert peak_of_step(log.events) == norms_in_pieces_bytes(shape, dtype, by_row=by_row)


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("rank", 0), ("tensor_wise", 1), ("eps", 0.0)])
def test_refuses_by_name(entry: OptimizerEntry, name: str, value: object) -> None:
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "role": Role.VECTOR}
    with pytest.raises(ValueError, match=name):
        QApollo([group], **{**entry.defaults, name: value})
