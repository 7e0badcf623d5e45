"""GWT: equal to the paper's algorithm with an explicit Haar transform and its inverse, in float64."""

from typing import Any

import pytest
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
from whatfits.estimator.memory.optimizers.own_split import Gwt
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.gwt import ENTRY, GWT
from whatfits.profiler.trace.optimizer_step import peak_of_step, trace_optimizer_step

STEPS = 20
LR, BETAS, EPS, SCALE = 1e-2, (0.9, 0.999), 1e-6, 0.25


def haar(signal: torch.Tensor, level: int) -> list[torch.Tensor]:
    """Coarse coefficients, then details from the coarsest to the finest; an odd length is filled with a zero."""
    details: list[torch.Tensor] = []
    for _ in range(level):
        if signal.shape[1] % 2:
            signal = torch.cat([signal, signal.new_zeros(len(signal), 1)], 1)
        even, odd = signal[:, ::2], signal[:, 1::2]
        details.insert(0, (even - odd) / 2**0.5)
        signal = (even + odd) / 2**0.5
    return [signal, *details]


def inverse_haar(coefficients: list[torch.Tensor], columns: int) -> torch.Tensor:
    """The inverse of `haar`."""
    signal, *details = coefficients
    for detail in details:
        coarse = signal[:, : detail.shape[1]]
        signal = torch.stack([coarse + detail, coarse - detail], -1).flatten(1) / 2**0.5
    return signal[:, :columns]


class _Algorithm1:
    """arXiv:2501.07237, Algorithm 1, with Adam's bias correction as a factor of the step, and Fira's limiter."""

    def __init__(self, param: torch.Tensor, hyper: dict[str, Any]) -> None:
        self.param = param
        self.hyper = hyper
        self.count = 0
        self.moments: Any = (0.0, 0.0)
        self.norm: Any = None

    def step(self, grad: torch.Tensor) -> None:
        """One step."""
        self.count += 1
        coarse, *details = haar(grad, self.hyper["level"])
        m = BETAS[0] * self.moments[0] + (1 - BETAS[0]) * coarse
        v = BETAS[1] * self.moments[1] + (1 - BETAS[1]) * coarse**2
        self.moments = (m, v)
        denominator = v.sqrt() + EPS
        limit = self.hyper["norm_growth_limit"]
        if limit is not None:
            norm = (m / denominator).norm()
            limiter = 1.0 if self.norm is None else max(norm / (self.norm + 1e-8), limit) / limit
            self.norm = norm / limiter
            denominator = denominator * limiter
        parts = [m / denominator]
        for detail in details:
            parts.append(detail / denominator[:, : detail.shape[1]])
            denominator = denominator.repeat_interleave(2, 1)
        step_size = LR * SCALE
        if self.hyper["bias_correction"]:
            step_size *= (1 - BETAS[1] ** self.count) ** 0.5 / (1 - BETAS[0] ** self.count)
        decayed = self.param * (1 - LR * self.hyper["weight_decay"])
        self.param = decayed - step_size * inverse_haar(parts, grad.shape[1])


HYPERS: dict[str, dict[str, Any]] = {
    "default": {"level": 2, "norm_growth_limit": None, "bias_correction": True, "weight_decay": 0.0},
    "one level": {"level": 1, "norm_growth_limit": None, "bias_correction": True, "weight_decay": 0.1},
    "three levels": {"level": 3, "norm_growth_limit": None, "bias_correction": False, "weight_decay": 0.0},
    "limiter": {"level": 2, "norm_growth_limit": 1.01, "bias_correction": True, "weight_decay": 0.0},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["wide", "odd", "tiny", "several pieces"])
@pytest.mark.parametrize("name", HYPERS)
def test_equals_the_algorithm_in_float64(
    device: torch.device, dtype: torch.dtype, shape: str, name: str
) -> None:
    hyper = HYPERS[name]
    (param, _), *_ = params = make_params([SHAPES[shape]], dtype, device)
    optimizer = build(ENTRY, params, hyper)
    reference = _Algorithm1(param.detach().double(), hyper)

    for step in range(STEPS if param.numel() < 10**6 else 4):
        set_grads([param], step)
        assert param.grad is not None
        # Sums of a block must not cancel: details over a coefficient near 0 are without bound, rounding errors too.
        param.grad.abs_().add_(0.5)
        reference.step(param.grad.double())
        optimizer.step()

    error = (param.detach().double() - reference.param).abs()
    # bf16: each step rounds a parameter of 2 to 4 by up to 2^-7, which over 20 steps adds up to 0.15, on average 0.015.
    assert float(error.max()) < (1e-4 if dtype is torch.float32 else 0.15)
    assert float(error.mean()) < (1e-6 if dtype is torch.float32 else 0.025)


def test_the_transform_of_the_reference_is_orthogonal() -> None:
    signal = torch.randn(5, 24, dtype=torch.float64)

    coefficients = haar(signal, 3)

    assert sum(float((part**2).sum()) for part in coefficients) == pytest.approx(float((signal**2).sum()))
    torch.testing.assert_close(inverse_haar(coefficients, 24), signal)


def test_other_roles_get_adamw(device: torch.device) -> None:
    shapes = [SHAPES["embedding"], SHAPES["vector"], SHAPES["head"]]
    ours, theirs = make_params(shapes, torch.float32, device), make_params(shapes, torch.float32, device)
    optimizer = build(ENTRY, ours, {"lr": 1e-2, "weight_decay": 0.1})
    reference = torch.optim.AdamW([param for param, _ in theirs], lr=1e-2, eps=1e-6, weight_decay=0.1)

    for step in range(STEPS):
        set_grads([param for param, _ in ours], step)
        set_grads([param for param, _ in theirs], step)
        optimizer.step()
        reference.step()

    for (param, _), (other, _) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit", [None, 1.01])
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype, limit: float | None) -> None:
    check_deterministic_and_resumes(ENTRY, {"norm_growth_limit": limit}, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_and_allocates_what_it_declares(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    check_bytes(ENTRY, {}, Gwt(param_dtype_bytes=dtype.itemsize), shape, dtype, device)


def test_the_limiter_is_declared(device: torch.device) -> None:
    """Its scalars are a few bytes more than declared, as each is one of several in a sum of many."""
    shape, role = SHAPES["odd"]
    hyper = {**ENTRY.defaults, "norm_growth_limit": 1.01, "level": 1}
    params = make_params([(shape, role)], torch.float32, device)
    optimizer = build(ENTRY, params, hyper)
    declared = Parameter(shape, torch.float32, role)
    set_grads([params[0][0]], 0)
    optimizer.step()

    traced = peak_of_step(trace_optimizer_step(optimizer))

    assert traced == pytest.approx(ENTRY.declaration.transient_bytes(declared, hyper, Phase.STEADY), rel=0.01)
    assert ENTRY.declaration.states(declared, hyper)[-1].nbytes == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("betas", (1.0, 0.9)),
        ("level", 0),
        ("level", 1.5),
        ("projection_scale", 0.0),
        ("norm_growth_limit", 0.5),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})


def test_a_first_gradient_of_zeros_limits_nothing_later() -> None:
    param = torch.nn.Parameter(torch.ones(4, 16))
    optimizer = GWT([{"params": [param], "role": Role.MATRIX}], lr=0.1, norm_growth_limit=1.01)
    for grad in (torch.zeros(4, 16), torch.ones(4, 16)):
        param.grad = grad
        optimizer.step()

    assert (param - 1).abs().min() > 1e-3
