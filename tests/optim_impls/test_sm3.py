"""SM3: equal to pytorch-optimizer's and to the paper's algorithm in float64; no momentum tensor without momentum."""

import pytest
import pytorch_optimizer
import torch

from tests.optim_impls.checks import (
    DTYPES,
    SHAPES,
    build,
    check_bytes,
    check_deterministic_and_resumes,
    make_params,
    set_grads,
)
from whatfits.estimator.memory.optimizers.own_elementwise import Sm3
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.sm3 import ENTRY

STEPS = 20
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8 * 2**-6}
"""bf16: eight roundings of a parameter between 2 and 4; theirs rounds the update before it is added, ours does not."""
CONVOLUTION = ((8, 6, 5, 3), Role.VECTOR)
SCALAR = ((), Role.VECTOR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_the_published_code(device: torch.device, dtype: torch.dtype, momentum: float) -> None:
    shapes = [SHAPES["wide"], SHAPES["several pieces"], SHAPES["vector"], CONVOLUTION, SCALAR]
    ours, theirs = make_params(shapes, dtype, device), make_params(shapes, dtype, device)
    optimizer = build(ENTRY, ours, {"momentum": momentum})
    reference = pytorch_optimizer.SM3([param for param, _ in theirs], momentum=momentum, foreach=False)

    for step in range(STEPS):
        set_grads([param for param, _ in ours], step)
        set_grads([param for param, _ in theirs], step)
        optimizer.step()
        reference.step()

    for (param, _), (other, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=TOLERANCE[dtype])


def test_equals_the_algorithm_in_float64(device: torch.device) -> None:
    """arXiv:1901.11150, Algorithm SM3-II, with loops over the sets of the cover."""
    (param, _), *_ = params = make_params([((7, 9), Role.MATRIX)], torch.float32, device)
    optimizer = build(ENTRY, params, {"lr": 0.1})
    expected = param.detach().double().cpu()
    rows, columns = [0.0] * 7, [0.0] * 9

    for step in range(STEPS):
        set_grads([param], step)
        assert param.grad is not None
        grad = param.grad.double().cpu()
        new_rows, new_columns = [0.0] * 7, [0.0] * 9
        for i in range(7):
            for j in range(9):
                nu = min(rows[i], columns[j]) + float(grad[i, j]) ** 2
                new_rows[i], new_columns[j] = max(new_rows[i], nu), max(new_columns[j], nu)
                expected[i, j] -= 0.1 * grad[i, j] / nu**0.5
        rows, columns = new_rows, new_columns
        optimizer.step()

    torch.testing.assert_close(param.detach().double().cpu(), expected, rtol=0, atol=1e-5)


def test_a_gradient_of_zero_changes_nothing(device: torch.device) -> None:
    (param, _), *_ = params = make_params([SHAPES["wide"]], torch.float32, device)
    before = param.detach().clone()
    param.grad = torch.zeros_like(param)

    build(ENTRY, params, {}).step()

    assert torch.equal(param.detach(), before)


def test_momentum_is_kept_only_where_there_is_some(device: torch.device) -> None:
    for momentum, names in ((0.0, set()), (0.9, {"momentum_buffer"})):
        (param, _), *_ = params = make_params([SHAPES["wide"]], torch.float32, device)
        optimizer = build(ENTRY, params, {"momentum": momentum})
        set_grads([param], 0)
        optimizer.step()

        assert set(optimizer.state[param]) == {"accumulator_0", "accumulator_1", *names}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype, momentum: float) -> None:
    check_deterministic_and_resumes(ENTRY, {"momentum": momentum}, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_and_allocates_what_it_declares(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    check_bytes(ENTRY, {}, Sm3(param_dtype_bytes=dtype.itemsize), shape, dtype, device)


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("momentum", 1.0), ("eps", 0.0)])
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})
