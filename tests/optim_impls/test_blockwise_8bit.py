"""The block-wise 8-bit family: equal to its definition in float64, near to bitsandbytes, its bytes as declared."""

from collections.abc import Callable
from typing import Any

import bitsandbytes
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
from tests.optim_impls.quantised_checks import InStep, round_trip
from whatfits.estimator.memory.optimizers.own_quantised import (
    ADAM,
    LION,
    SGDM,
    Blockwise8bitMethod,
    OwnBlockwise8bit,
)
from whatfits.optim_impls.blockwise_8bit import ENTRIES, Blockwise8bit
from whatfits.optim_impls.declare import Parameter, Role
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.quantize import codebook_tensors

BY_NAME = {entry.name: entry for entry in ENTRIES}
PROGRAMS: dict[str, Blockwise8bitMethod] = {
    "adam_8bit": ADAM,
    "adamw_8bit": ADAM,
    "sgdm_8bit": SGDM,
    "lion_8bit": LION,
}
STEPS = 20
LR, DECAY = 1e-2, 0.1

Rule = Callable[[Tensor, Tensor, list[Tensor], int], tuple[Tensor, list[Tensor]]]


def adam_rule(*, decouples: bool) -> Rule:
    """Kingma and Ba, Algorithm 1; Loshchilov and Hutter, Algorithm 2."""

    def rule(param: Tensor, grad: Tensor, moments: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
        param, grad = (param * (1 - LR * DECAY), grad) if decouples else (param, grad + DECAY * param)
        m, v = 0.9 * moments[0] + 0.1 * grad, 0.999 * moments[1] + 0.001 * grad**2
        denominator = (v / (1 - 0.999**step)).sqrt() + 1e-8
        return param - LR * m / (1 - 0.9**step) / denominator, [m, v]

    return rule


def sgdm_rule(param: Tensor, grad: Tensor, moments: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
    """torch.optim.SGD's documentation, without dampening; at step 1 the momentum is zero."""
    del step
    m = 0.9 * moments[0] + grad + DECAY * param
    return param - LR * m, [m]


def lion_rule(param: Tensor, grad: Tensor, moments: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
    """Chen et al., Algorithm 2."""
    del step
    (m,) = moments
    update = torch.sign(0.9 * m + 0.1 * grad)
    return param - LR * (update + DECAY * param), [0.99 * m + 0.01 * grad]


RULES: dict[str, Rule] = {
    "adam_8bit": adam_rule(decouples=False),
    "adamw_8bit": adam_rule(decouples=True),
    "sgdm_8bit": sgdm_rule,
    "lion_8bit": lion_rule,
}
OPTIMIZERS: Any = bitsandbytes.optim  # it has no types
BITSANDBYTES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # Its Adam8bit decouples weight decay as well.
    "adamw_8bit": OPTIMIZERS.AdamW8bit,
    "sgdm_8bit": lambda params, **kwargs: OPTIMIZERS.SGD8bit(params, momentum=0.9, **kwargs),
    "lion_8bit": OPTIMIZERS.Lion8bit,
}
HYPER: dict[str, Any] = {"lr": LR, "weight_decay": DECAY}


@pytest.fixture(params=list(BY_NAME))
def entry(request: pytest.FixtureRequest) -> OptimizerEntry:
    return BY_NAME[request.param]


def fraction_off(got: Tensor, expected: Tensor, tolerance: float) -> float:
    return ((got.double() - expected.double()).abs() > tolerance).double().mean().item()


@pytest.mark.parametrize("shape", ["odd", "wide", "vector"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_definition_in_float64(
    entry: OptimizerEntry, dtype: torch.dtype, shape: str, device: torch.device
) -> None:
    """A code may differ where fp32 rounds to the other side of a boundary, or Lion's sign where both are near zero."""
    (param, _), *_ = params = make_params([SHAPES[shape]], dtype, device)
    optimizer = build(entry, params, HYPER)
    signs = [is_signed for _, is_signed in PROGRAMS[entry.name].moments]
    quantised = param.numel() >= 4096
    expected, moments = param.detach().double(), [torch.zeros_like(param).double() for _ in signs]
    for step in range(STEPS):
        set_grads([param], step)
        assert param.grad is not None
        expected, moments = RULES[entry.name](expected, param.grad.double(), moments, step + 1)
        expected = expected.to(dtype).double()
        if quantised:
            moments = [round_trip(m, is_signed=sign) for m, sign in zip(moments, signs, strict=True)]
        optimizer.step()

    rounding = 1e-5 if dtype is torch.float32 else 2.0**-7 * 4
    assert fraction_off(param.detach(), expected, rounding) < 3e-3


@pytest.mark.parametrize("name", list(BITSANDBYTES))
def test_is_near_to_bitsandbytes(name: str) -> None:
    """Its CPU code takes 2e-5 of a block's maximum for zero, so that few elements move apart, and no mean does."""
    shapes = [SHAPES["odd"], SHAPES["wide"], SHAPES["vector"]]
    ours, theirs = (make_params(shapes, torch.float32, torch.device("cpu")) for _ in range(2))
    optimizer = build(BY_NAME[name], ours, HYPER)
    reference = BITSANDBYTES[name]([param for param, _ in theirs], **HYPER)
    for step in range(STEPS):
        for params, method in ((ours, optimizer), (theirs, reference)):
            set_grads([param for param, _ in params], step)
            method.step()

    for (param, _), (other, _) in zip(ours, theirs, strict=True):
        assert fraction_off(param, other, 2e-2 * LR * STEPS) < 2e-2
        assert (param - other).mean().abs() < 1e-2 * LR


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes(
    entry: OptimizerEntry, dtype: torch.dtype, device: torch.device
) -> None:
    check_deterministic_and_resumes(entry, {}, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_bytes_are_as_declared(
    entry: OptimizerEntry, dtype: torch.dtype, shape: str, device: torch.device
) -> None:
    program = OwnBlockwise8bit(param_dtype_bytes=dtype.itemsize, method=PROGRAMS[entry.name])
    check_bytes(entry, {}, InStep(program), shape, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ["embedding", "odd"])
def test_bytes_of_fp32_embeddings_are_as_declared(
    entry: OptimizerEntry, dtype: torch.dtype, shape: str, device: torch.device
) -> None:
    method = PROGRAMS[entry.name]
    program = OwnBlockwise8bit(param_dtype_bytes=dtype.itemsize, method=method, fp32_embeddings=True)
    check_bytes(entry, {"fp32_embeddings": True}, InStep(program), shape, dtype, device)


def test_states_are_of_bitsandbytes_size(entry: OptimizerEntry) -> None:
    """2 e + 8 ceil(e / 256) for two states, e + 4 ceil(e / 256) for one; below 4096 elements 4 bytes a state."""
    count = len(PROGRAMS[entry.name].moments)

    def size(shape: tuple[int, ...]) -> int:
        states = entry.declaration.states(Parameter(shape, torch.bfloat16, Role.MATRIX), entry.defaults)
        return sum(state.nbytes for state in states)

    assert size((300, 100)) == count * (30000 + 4 * 118)
    assert size((64, 64)) == count * (4096 + 4 * 16)
    assert size((4095,)) == count * 4 * 4095


def test_shared_states_are_the_codebooks(entry: OptimizerEntry) -> None:
    expected = [entry[1:] for entry in codebook_tensors()] * len(PROGRAMS[entry.name].moments)
    shared = entry.declaration.shared_states(entry.defaults)

    assert [(state.shape, state.dtype) for state in shared] == expected


def test_chunk_size_does_not_change_the_result(entry: OptimizerEntry, device: torch.device) -> None:
    results = []
    for chunk_size in (512, 1 << 18):
        (param, _), *_ = params = make_params([SHAPES["odd"]], torch.bfloat16, device)
        optimizer = build(entry, params, {**HYPER, "chunk_size": chunk_size})
        for step in range(3):
            set_grads([param], step)
            optimizer.step()
        results.append(param.detach())

    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("adam", "lr", -1.0),
        ("adam", "betas", (0.9, 1.0)),
        ("adam", "eps", 0.0),
        ("sgdm", "momentum", 1.0),
        ("lion", "weight_decay", -0.1),
        ("lion", "min_8bit_size", -1),
        ("adamw", "chunk_size", 300),
    ],
)
def test_refuses_by_name(method: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Blockwise8bit([torch.nn.Parameter(torch.ones(2))], method=method, **{name: value})


def test_refuses_unknown_methods_and_arguments() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="adam, adamw, sgdm, lion"):
        Blockwise8bit([param], method="lamb")
    with pytest.raises(TypeError, match="momentum is no argument of lion_8bit"):
        Blockwise8bit([param], method="lion", momentum=0.9)
