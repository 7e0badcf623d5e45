"""Lion: equal to pytorch-optimizer's, and to the paper's equations in float64."""

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
from whatfits.estimator.memory.optimizers.own_elementwise import OwnLion
from whatfits.optim_impls.chunks import signs_into
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.lion import ENTRY, Lion

STEPS = 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_the_published_code(device: torch.device, dtype: torch.dtype, weight_decay: float) -> None:
    shapes = [SHAPES["wide"], SHAPES["several pieces"], SHAPES["vector"]]
    ours = make_params(shapes, dtype, device)
    theirs = make_params(shapes, dtype, device)
    optimizer = build(ENTRY, ours, {"lr": 1e-2, "weight_decay": weight_decay})
    reference = pytorch_optimizer.Lion(
        [param for param, _ in theirs], lr=1e-2, weight_decay=weight_decay, foreach=False
    )

    for step in range(STEPS):
        set_grads([param for param, _ in ours], step)
        set_grads([param for param, _ in theirs], step)
        optimizer.step()
        reference.step()

    for (param, _), (other, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=0)


def test_equals_the_equations_in_float64(device: torch.device) -> None:
    """Signs differ only where the interpolation is nearly 0; there are none among these."""
    (param, _), *_ = params = make_params([SHAPES["odd"]], torch.float32, device)
    optimizer = build(ENTRY, params, {"lr": 1e-2, "weight_decay": 0.1})
    expected, exp_avg = param.detach().double(), torch.zeros_like(param).double()

    for step in range(STEPS):
        set_grads([param], step)
        assert param.grad is not None
        grad = param.grad.double()
        update = torch.sign(0.9 * exp_avg + 0.1 * grad)
        expected = expected - 1e-2 * (update + 0.1 * expected)
        exp_avg = 0.99 * exp_avg + 0.01 * grad
        optimizer.step()

    torch.testing.assert_close(param.detach().double(), expected, rtol=0, atol=1e-5)


def test_a_transposed_parameter_is_updated_alike(device: torch.device) -> None:
    """It cannot be seen as flat, so that it goes through some rows at a time."""
    plain = torch.nn.Parameter(torch.randn(1500, 1100, device=device))
    transposed = torch.nn.Parameter(plain.detach().t().contiguous().t())
    grad = torch.randn_like(plain)
    plain.grad, transposed.grad = grad, grad.t().contiguous().t()
    assert not transposed.is_contiguous()

    Lion([plain, transposed], lr=1e-2).step()

    assert torch.equal(plain, transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype) -> None:
    check_deterministic_and_resumes(ENTRY, {"lr": 1e-2}, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_step_as_the_whole(dtype: torch.dtype) -> None:
    check_shards_step_as_the_whole(ENTRY, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_and_allocates_what_it_declares(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    check_bytes(ENTRY, {}, OwnLion(param_dtype_bytes=dtype.itemsize), shape, dtype, device)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("weight_decay", -0.1), ("betas", (1.0, 0.9)), ("betas", (0.9, -0.1))]
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})


@pytest.mark.parametrize("negative_zeros", [False, True])
def test_signs_of_bf16_are_those_of_torch(negative_zeros: bool) -> None:
    """Every bf16 number but NaN, and -0.0 where it is announced."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)[0 if negative_zeros else 1 :]
    values = values[~values.isnan()]
    out = torch.empty_like(values)

    factor = signs_into(out, values, negative_zeros=negative_zeros)

    assert torch.equal(out * factor, torch.sign(values))


def test_an_element_without_gradients_stays(device: torch.device) -> None:
    """Rows of an embedding that no token had, whose gradient may be -0.0."""
    for dtype in DTYPES:
        (param, _), *_ = params = make_params([SHAPES["embedding"]], dtype, device)
        before = param.detach().clone()
        optimizer = build(ENTRY, params, {"lr": 1e-1})
        for zero in (0.0, -0.0, -0.0):
            param.grad = torch.full_like(param, zero)
            optimizer.step()

        assert torch.equal(param.detach(), before)
