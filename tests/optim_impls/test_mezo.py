"""MeZO: equal to the paper's algorithm with all noise held, in float64; no state, a piece of noise at a time."""

import io
from collections.abc import Callable, Sequence

import pytest
import torch

from tests.optim_impls.checks import PROGRAM_ROLES, SHAPES, build, make_params
from whatfits.estimator.memory.optimizers import ParameterTensor, StepPhase
from whatfits.estimator.memory.optimizers.own_elementwise import Mezo
from whatfits.optim_impls.chunks import CHUNK
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.mezo import ENTRY, MeZO
from whatfits.profiler.trace.optimizer_step import StorageLog, peak_of_step

STEPS = 20
LR, EPS = 1e-3, 1e-3


def quadratic(params: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Half the squared distance from 1."""

    def closure() -> torch.Tensor:
        return torch.stack([((param.detach().float() - 1) ** 2).sum() / 2 for param in params]).sum()

    return closure


def noise(optimizer: MeZO, params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """z of the next step, by letting an optimizer of the same seed and step move zeros."""
    group = optimizer.param_groups[0]
    zeros = [torch.nn.Parameter(torch.zeros_like(param)) for param in params]
    other = MeZO(zeros, lr=0.0, eps=1.0, seed=group["seed"])
    other.param_groups[0]["step"] = group["step"]
    seen: list[list[torch.Tensor]] = []

    def closure() -> torch.Tensor:
        seen.append([zero.detach().clone() for zero in zeros])
        return torch.zeros(())

    other.step(closure)
    return seen[0]


def test_equals_the_algorithm_in_float64(device: torch.device) -> None:
    """arXiv:2305.17333, Algorithm 1: p <- p - lr (L(p + eps z) - L(p - eps z)) / (2 eps) z."""
    params = [
        param
        for param, _ in make_params([((40, 30), Role.MATRIX), ((11,), Role.VECTOR)], torch.float32, device)
    ]
    optimizer = MeZO(params, lr=LR, eps=EPS, weight_decay=0.1, seed=3)
    expected = [param.detach().double() for param in params]

    for _ in range(STEPS):
        z = [part.double() for part in noise(optimizer, params)]
        plus = sum(((p + EPS * part - 1) ** 2).sum() / 2 for p, part in zip(expected, z, strict=True))
        minus = sum(((p - EPS * part - 1) ** 2).sum() / 2 for p, part in zip(expected, z, strict=True))
        slope = (plus - minus) / (2 * EPS)
        expected = [(p - LR * slope * part) * (1 - LR * 0.1) for p, part in zip(expected, z, strict=True)]
        optimizer.step(quadratic(params))

    for param, wanted in zip(params, expected, strict=True):
        # The difference of two losses of 1000 in fp32, over 2 eps, is good to a few percent of the slope.
        torch.testing.assert_close(param.detach().double(), wanted, rtol=0, atol=2e-2)


def test_noise_is_standard_normal_and_new_each_step(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.zeros(400, 300, device=device)) for _ in range(2)]
    optimizer = MeZO(params, lr=0.0, seed=5)
    first = noise(optimizer, params)
    optimizer.step(quadratic(params))
    second = noise(optimizer, params)

    for z in (*first, *second):
        assert abs(float(z.mean())) < 0.02
        assert abs(float(z.std()) - 1) < 0.02
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("seed", [1, 2, 2**31, 2**32 - 1])
def test_each_seed_has_noise_of_its_own(device: torch.device, seed: int) -> None:
    """Generators of the CPU take the last 32 bits of what they are given."""
    params = [torch.nn.Parameter(torch.zeros(20, device=device))]
    (first,), (other,) = (noise(MeZO(params, seed=number), params) for number in (0, seed))

    assert not torch.equal(first, other)


def test_an_average_step_goes_down(device: torch.device) -> None:
    params = [torch.nn.Parameter(torch.zeros(20, device=device))]
    optimizer = MeZO(params, lr=1e-2, seed=1)
    closure = quadratic(params)
    before = float(closure())

    for _ in range(200):
        optimizer.step(closure)

    assert float(closure()) < before / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeats_and_resumes_bitwise(device: torch.device, dtype: torch.dtype) -> None:
    def run(break_at: int | None) -> list[torch.Tensor]:
        params = [param for param, _ in make_params([SHAPES["wide"], SHAPES["vector"]], dtype, device)]
        optimizer = MeZO(params, lr=1e-3, seed=9)
        for step in range(6):
            if step == break_at:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = MeZO(params, lr=1e-3, seed=0)
                optimizer.load_state_dict(torch.load(file, weights_only=True))
            optimizer.step(quadratic(params))
        return [param.detach() for param in params]

    whole, again, broken = run(None), run(None), run(3)

    for first, second, third in zip(whole, again, broken, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_holds_nothing_and_allocates_one_piece(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    """The closure is the caller's: its scalar is made before."""
    size, role = SHAPES[shape]
    (param, _), *_ = params = make_params([(size, role)], dtype, device)
    optimizer = build(ENTRY, params, {})
    losses = [torch.tensor(2.0), torch.tensor(1.0)]
    log = StorageLog(device.type, [param, *losses])
    with log:
        assert isinstance(optimizer, MeZO)
        optimizer.step(losses.pop)
    log.close()
    tensor = ParameterTensor(name="p", shape=size, role=PROGRAM_ROLES[role])
    program = Mezo(param_dtype_bytes=dtype.itemsize)
    declared = ENTRY.declaration.transient_bytes(Parameter(size, dtype, role), ENTRY.defaults, Phase.STEADY)

    assert not optimizer.state
    assert program.states(tensor) == ()
    assert max(event.nbytes for event in log.events) == declared == min(param.numel(), CHUNK) * dtype.itemsize
    # Where losses live on the CPU, the difference of the two losses and its half are seen too: 4 bytes each.
    assert declared <= peak_of_step(log.events) <= declared + 8
    assert max(event.nbytes for event in program.events([tensor], StepPhase.steady)) == declared


def test_a_step_without_a_closure_is_refused() -> None:
    with pytest.raises(RuntimeError, match="closure"):
        MeZO([torch.nn.Parameter(torch.zeros(3))]).step()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -1.0), ("eps", 0.0), ("weight_decay", -0.1), ("seed", -1), ("seed", 2**32)]
)
def test_bad_hyper_parameters_are_refused_by_name(name: str, value: object) -> None:
    params = make_params([((4, 4), Role.MATRIX)], torch.float32, torch.device("cpu"))

    with pytest.raises(ValueError, match=name):
        build(ENTRY, params, {name: value})
