"""GaLore with Adafactor: equal to galore-torch, whose options do the same; deterministic; resumes bitwise."""

from typing import Any

import pytest
import torch

from tests.optim_impls.checks import DTYPES, build, check_deterministic_and_resumes
from tests.optim_impls.low_rank_checks import INTERVAL, MATRICES, RANK, STEPS, error, gradient
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.galore_adafactor import ENTRY

HYPER: dict[str, Any] = {
    "lr": 0.02,
    "rank": RANK,
    "projection_update_interval": INTERVAL,
    "projection_scale": 0.5,
}
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.06}


def both(
    shape: tuple[int, ...], role: Role, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Weights before, ours after, and galore-torch's after on the CPU in fp32."""
    galore_torch = pytest.importorskip("galore_torch")
    start = (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    ours = torch.nn.Parameter(start.clone().to(device))
    theirs = torch.nn.Parameter(start.float().clone())
    optimizer = build(ENTRY, [(ours, role)], HYPER)
    group: dict[str, Any] = {"params": [theirs]}
    if role is Role.MATRIX:
        group |= {"rank": RANK, "update_proj_gap": INTERVAL, "scale": 0.5, "proj_type": "std"}
    reference = galore_torch.GaLoreAdafactor([group], lr=0.02, scale_parameter=False, relative_step=False)
    for step in range(STEPS):
        grad = gradient((shape[0], shape[1] if len(shape) > 1 else 1), step, dtype).reshape(shape)
        ours.grad, theirs.grad = grad.to(device), grad.float()
        optimizer.step()
        reference.step()
    return start.float(), ours.detach().cpu().float(), theirs.detach()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", sorted(set(MATRICES) - {"rank above the shorter side"}))
def test_matrices_are_those_of_galore_torch(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    assert error(*both(MATRICES[shape], Role.MATRIX, dtype, device)) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "role"),
    [((1300, 70), Role.EMBEDDING), ((40, 64), Role.HEAD), ((50,), Role.VECTOR)],
    ids=["two pieces", "one piece", "vector"],
)
def test_others_are_adafactor(
    shape: tuple[int, ...], role: Role, dtype: torch.dtype, device: torch.device
) -> None:
    assert error(*both(shape, role, dtype, device)) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_deterministic_and_resumes_bitwise(dtype: torch.dtype, device: torch.device) -> None:
    check_deterministic_and_resumes(ENTRY, {**HYPER, "projection_update_interval": 2}, dtype, device)


@pytest.mark.parametrize(
    ("name", "value"), [("decay_rate", 0.8), ("clip_threshold", 0), ("eps", 0), ("rank", 0)]
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        build(ENTRY, [(torch.nn.Parameter(torch.ones(2, 2)), Role.MATRIX)], {name: value})
