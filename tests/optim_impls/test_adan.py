"""Adan: the authors' form equal to pytorch-optimizer's, the paper's form to its equations in float64."""

from typing import Any

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
from whatfits.estimator.memory.optimizers.own_elementwise import OwnAdan
from whatfits.optim_impls.adan import ENTRY
from whatfits.optim_impls.declare import Role

STEPS = 20
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8 * 2**-6}
"""bf16: eight roundings of a parameter between 2 and 4, of the forty or sixty it goes through in 20 steps."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_authors_form_equals_the_published_code(
    device: torch.device, dtype: torch.dtype, weight_decay: float
) -> None:
    shapes = [SHAPES["wide"], SHAPES["several pieces"], SHAPES["vector"]]
    ours, theirs = make_params(shapes, dtype, device), make_params(shapes, dtype, device)
    hyper = {"lr": 1e-2, "weight_decay": weight_decay, "bias_correction": True}
    optimizer = build(ENTRY, ours, hyper)
    # Its first step subtracts the gradient times the clipping factor, 1 without clipping: no difference, as here.
    reference = pytorch_optimizer.Adan(
        [param for param, _ in theirs], lr=1e-2, weight_decay=weight_decay, foreach=False
    )

    for step in range(STEPS):
        set_grads([param for param, _ in ours], step)
        set_grads([param for param, _ in theirs], step)
        optimizer.step()
        reference.step()

    for (param, _), (other, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bias_correction", [False, True])
def test_equals_the_equations_in_float64(device: torch.device, bias_correction: bool) -> None:
    (param, _), *_ = params = make_params([SHAPES["odd"]], torch.float32, device)
    optimizer = build(ENTRY, params, {"lr": 1e-2, "weight_decay": 0.1, "bias_correction": bias_correction})
    reference = _Algorithm1(param.detach().double(), bias_correction=bias_correction)

    for step in range(STEPS):
        set_grads([param], step)
        assert param.grad is not None
        reference.step(param.grad.double())
        optimizer.step()

    torch.testing.assert_close(param.detach().double(), reference.param, rtol=0, atol=1e-5)


class _Algorithm1:
    """arXiv:2208.06677, Algorithm 1, in its own betas (0.02, 0.08, 0.01)."""

    def __init__(self, param: torch.Tensor, *, bias_correction: bool) -> None:
        self.param = param
        self.corrects = bias_correction
        self.count = 0
        self.state: Any = None

    def step(self, grad: torch.Tensor) -> None:
        """One step at lr 0.01, weight decay 0.1."""
        self.count += 1
        b1, b2, b3 = 0.02, 0.08, 0.01
        if self.state is None:
            zero = torch.zeros_like(grad)
            self.state = (zero, zero, zero, grad) if self.corrects else (grad, zero, grad**2, grad)
        m, v, n, last = self.state
        difference = grad - last
        m = (1 - b1) * m + b1 * grad
        v = (1 - b2) * v + b2 * difference
        n = (1 - b3) * n + b3 * (grad + (1 - b2) * difference) ** 2
        self.state = (m, v, n, grad)
        if self.corrects:
            m = m / (1 - (1 - b1) ** self.count)
            v = v / (1 - (1 - b2) ** self.count)
            n = n / (1 - (1 - b3) ** self.count)
        step_sizes = 1e-2 / (n.sqrt() + 1e-8)
        self.param = (self.param - step_sizes * (m + (1 - b2) * v)) / (1 + 0.1 * 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_correction", [False, True])
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype, bias_correction: bool) -> None:
    check_deterministic_and_resumes(ENTRY, {"bias_correction": bias_correction}, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_step_as_the_whole(dtype: torch.dtype) -> None:
    check_shards_step_as_the_whole(ENTRY, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_and_allocates_what_it_declares(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    check_bytes(ENTRY, {}, OwnAdan(param_dtype_bytes=dtype.itemsize), shape, dtype, device)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("betas", (0.98, 1.0, 0.99)),
        ("betas", (0.98, 0.9, -1.0)),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})
