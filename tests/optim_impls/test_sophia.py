"""SophiaG: equal to Algorithm 3 in float64, and to pytorch-optimizer's Sophia given the same estimates."""

import io

import pytest
import pytorch_optimizer
import torch

from tests.optim_impls.checks import (
    DTYPES,
    SHAPES,
    build,
    check_bytes,
    check_deterministic_and_resumes,
    check_shards_step_as_the_whole,
    make_params,
    set_grads,
)
from whatfits.estimator.memory.optimizers.own_elementwise import OwnSophiaG
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.sophia import ENTRY, SophiaG
from whatfits.profiler.trace.optimizer_step import StorageLog

STEPS, INTERVAL = 20, 3
LR, RHO, BS = 1e-2, 2**-5, 32
"""Of the momentum's elements some are clipped and some are not; powers of two scale without rounding."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8 * 2**-6}
"""bf16: eight roundings of a parameter between 2 and 4, of the forty it goes through in 20 steps."""


def estimate(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], step: int) -> None:
    """The Hessian from gradients of their own."""
    assert isinstance(optimizer, SophiaG)
    set_grads(params, 500 + step)
    optimizer.update_hessian()


def gradients(params: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    found = [param.grad for param in params if param.grad is not None]
    assert len(found) == len(params)
    return found


def test_equals_the_equations_in_float64(device: torch.device) -> None:
    (param, _), *_ = params = make_params([SHAPES["odd"]], torch.float32, device)
    optimizer = build(ENTRY, params, {"lr": LR, "rho": RHO, "bs": BS, "weight_decay": 0.1})
    expected = param.detach().double()
    m, h = torch.zeros_like(expected), torch.zeros_like(expected)
    clipped = 0

    for step in range(STEPS):
        if step % INTERVAL == 0:
            estimate(optimizer, [param], step)
            h = 0.99 * h + 0.01 * BS * gradients([param])[0].double() ** 2
        set_grads([param], step)
        m = 0.965 * m + 0.035 * gradients([param])[0].double()
        ratio = m / (RHO * h).clamp(min=1e-15)
        clipped += int((ratio.abs() > 1).sum())
        expected = expected - LR * 0.1 * expected - LR * ratio.clamp(-1, 1)
        optimizer.step()

    assert 0.1 < clipped / (STEPS * expected.numel()) < 0.9
    torch.testing.assert_close(param.detach().double(), expected, rtol=0, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_a_published_sophia_given_the_estimates(
    device: torch.device, dtype: torch.dtype, weight_decay: float
) -> None:
    """pytorch-optimizer clips to p what has no factor in its denominator: with p = rho that is rho times the update."""
    shapes = [SHAPES["wide"], SHAPES["several pieces"], SHAPES["vector"]]
    ours, theirs = ([param for param, _ in make_params(shapes, dtype, device)] for _ in range(2))
    optimizer = SophiaG(ours, lr=LR, rho=RHO, weight_decay=weight_decay)
    reference = pytorch_optimizer.SophiaH(
        theirs,
        lr=LR / RHO,
        betas=(0.965, 0.99),
        p=RHO,
        weight_decay=weight_decay * RHO,
        update_period=10**6,
        eps=1e-15,
        foreach=False,
    )

    for step in range(STEPS):
        hessian = None
        if step % INTERVAL == 0:
            estimate(optimizer, ours, step)
            hessian = [BS * grad**2 for grad in gradients(ours)]
        set_grads(ours, step)
        set_grads(theirs, step)
        optimizer.step(bs=BS)
        reference.step(hessian=hessian)

    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=TOLERANCE[dtype])


def test_moves_by_the_sign_of_the_momentum_until_the_first_estimate(device: torch.device) -> None:
    (param, _), *_ = make_params([SHAPES["wide"]], torch.float32, device)
    before = param.detach().clone()
    optimizer = SophiaG([param], lr=LR, weight_decay=0.0)
    set_grads([param], 0)

    optimizer.step()

    assert torch.equal(param, before - LR * gradients([param])[0].sign())


def test_an_estimate_may_come_before_the_first_step_and_allocates_its_state_only(
    device: torch.device,
) -> None:
    (param, _), *_ = make_params([SHAPES["several pieces"]], torch.float32, device)
    optimizer = SophiaG([param])
    estimate(optimizer, [param], 0)
    squares = gradients([param])[0] ** 2

    torch.testing.assert_close(optimizer.state[param]["hessian"], 0.01 * squares)
    assert not optimizer.state[param]["exp_avg"].any()
    assert param.grad is not None
    log = StorageLog(device.type, [param, param.grad, *optimizer.state[param].values()])
    with log:
        optimizer.update_hessian()
    log.close()
    assert log.events == []


def test_a_batch_size_stays_until_the_next_and_is_saved(device: torch.device) -> None:
    (param, _), *_ = make_params([SHAPES["tiny"]], torch.float32, device)
    optimizer, resumed = SophiaG([param]), SophiaG([param])
    optimizer.step(bs=64)
    optimizer.step()
    resumed.load_state_dict(optimizer.state_dict())

    assert resumed.param_groups[0]["bs"] == 64
    with pytest.raises(ValueError, match="bs is 0"):
        optimizer.step(bs=0)


def test_sparse_gradients_are_refused_in_steps_and_estimates(device: torch.device) -> None:
    (param, _), *_ = make_params([SHAPES["embedding"]], torch.float32, device)
    param.grad = torch.zeros_like(param).to_sparse()
    optimizer = SophiaG([param])

    for update in (optimizer.step, optimizer.update_hessian):
        with pytest.raises(RuntimeError, match="SophiaG takes dense gradients only"):
            update()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype) -> None:
    check_deterministic_and_resumes(ENTRY, {"lr": LR}, dtype, device)


def test_resumes_bitwise_between_an_estimate_and_its_steps(device: torch.device) -> None:
    (param, _), *_ = make_params([SHAPES["wide"]], torch.bfloat16, device)
    optimizer = SophiaG([param])
    set_grads([param], 0)
    optimizer.step()
    estimate(optimizer, [param], 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = torch.nn.Parameter(param.detach().clone())
    resumed = SophiaG([again])
    resumed.load_state_dict(torch.load(file, weights_only=True))

    for step in range(1, 5):
        for one, its in ((optimizer, param), (resumed, again)):
            set_grads([its], step)
            one.step()
            estimate(one, [its], step)

    assert torch.equal(param, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_step_as_the_whole(dtype: torch.dtype) -> None:
    check_shards_step_as_the_whole(ENTRY, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_and_allocates_what_it_declares(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    check_bytes(ENTRY, {}, OwnSophiaG(param_dtype_bytes=dtype.itemsize), shape, dtype, device)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("rho", 0.0),
        ("bs", 0),
        ("weight_decay", -0.1),
        ("betas", (1.0, 0.9)),
        ("betas", (0.9, -0.1)),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})
