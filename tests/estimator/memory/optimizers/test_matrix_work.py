"""The work of a step of the matrix methods equals what its operators multiply, read and write."""

from typing import Any

import pytest
import pytorch_optimizer
import torch
from galore_torch import GaLoreAdafactor as ReferenceGaLoreAdafactor

from tests.estimator.memory.optimizers import references
from tests.estimator.memory.optimizers.test_matrix_events import ROLES, OneAfterTheOther, decoder_parts
from tests.estimator.memory.optimizers.test_work import PARAMETERS, RANK, steady_work
from whatfits.estimator.memory.optimizers import OptimizerProgram, ParameterRole, ParameterTensor
from whatfits.estimator.memory.optimizers.adam_mini import AdamMini
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.memory.optimizers.frugal import Frugal
from whatfits.estimator.memory.optimizers.galore_adafactor import GaLoreAdafactor
from whatfits.estimator.memory.optimizers.muon import Muon
from whatfits.estimator.memory.optimizers.soap import Soap

BOTH = pytest.mark.parametrize("s", [4, 2], ids=["fp32", "bf16"])


def assert_work(
    program: OptimizerProgram, parameters: list[ParameterTensor], counted: tuple[int, int], rest: float
) -> None:
    """Equal FLOPs, and bytes up to a share of what is counted: numbers and vectors the formula leaves out."""
    flops, nbytes = counted
    work = program.flops_and_bytes(parameters)

    assert work.flops == flops
    assert 0 <= nbytes - work.bytes_moved <= rest * nbytes


@BOTH
def test_muon(s: int) -> None:
    tensors = references.torch_parameters(PARAMETERS, s, "meta")
    pairs = list(zip(PARAMETERS, tensors, strict=True))
    optimizer: Any = OneAfterTheOther(
        torch.optim.Muon([tensor for parameter, tensor in pairs if references.is_projected(parameter)]),
        torch.optim.AdamW(
            [tensor for parameter, tensor in pairs if not references.is_projected(parameter)], foreach=True
        ),
    )

    assert_work(Muon(param_dtype_bytes=s), PARAMETERS, steady_work(optimizer), 1e-6)


@BOTH
def test_soap(s: int) -> None:
    tensors = references.torch_parameters(PARAMETERS, s, "meta")

    assert_work(
        Soap(param_dtype_bytes=s), PARAMETERS, steady_work(pytorch_optimizer.SOAP(tensors, lr=1e-3)), 0
    )


@BOTH
def test_galore_adafactor(s: int) -> None:
    """Means count for little in matrices of a model's size; here they are 0.5%, and the counter sees a cast read."""
    tensors = references.torch_parameters(PARAMETERS, s, "meta")
    settings = {"rank": RANK, "update_proj_gap": 100, "scale": 0.25, "proj_type": "std"}
    optimizer = ReferenceGaLoreAdafactor(
        references.groups(PARAMETERS, tensors, **settings),
        lr=1e-3,
        relative_step=False,
        scale_parameter=False,
    )

    program = GaLoreAdafactor(param_dtype_bytes=s, rank=RANK)

    assert_work(program, PARAMETERS, steady_work(optimizer), 0.005 if s == 4 else 0.03)


@pytest.mark.parametrize(("s", "nbytes"), [(4, 68_466_320), (2, 34_233_160)])
def test_fira(s: int, nbytes: int) -> None:
    """Counted by `steady_work` with a limiter that acts without reading values, which meta tensors lack."""
    assert_work(Fira(param_dtype_bytes=s, rank=RANK), PARAMETERS, (215_482_368, nbytes), 0.002)


@BOTH
def test_adam_mini(s: int) -> None:
    model = torch.nn.ModuleDict(decoder_parts()).to("meta", references.DTYPES[s])
    parameters = []
    for name, tensor in model.named_parameters():
        tensor.grad = torch.empty_like(tensor)
        role = ROLES.get(name.removesuffix(".weight"), ParameterRole.linear)
        parameters.append(ParameterTensor(name=name, shape=tuple(tensor.shape), role=role))
    optimizer = pytorch_optimizer.AdamMini(model, lr=1e-3, num_embeds=64, num_heads=8, foreach=True)

    assert_work(AdamMini(param_dtype_bytes=s, num_heads=8), parameters, steady_work(optimizer), 1e-4)


def test_frugal_active_tensors_move_more() -> None:
    """26 against 9 accesses; half the linear elements are active at half the hidden size as rank."""
    matrices = [ParameterTensor(name=str(i), shape=(64, 64), role=ParameterRole.linear) for i in range(4)]

    work = Frugal(param_dtype_bytes=4, rank=32, update_interval=7).flops_and_bytes(matrices)

    assert (work.flops, work.bytes_moved, work.refresh_interval) == (0, 4 * 2 * 64 * 64 * (26 + 9), 7)
