"""Steps of the matrix methods: the programs' events equal the traced step's, up to the order of one operator's outputs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from galore_torch import GaLoreAdafactor as ReferenceGaLoreAdafactor

from tests.estimator.memory.optimizers import references
from tests.estimator.memory.optimizers.phases import (
    ORDERS,
    Event,
    outputs_sorted,
    program_phases,
    traced_phases,
)
from whatfits.estimator.memory.optimizers import (
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    StepPhase,
)
from whatfits.estimator.memory.optimizers.adam_mini import AdamMini
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.memory.optimizers.frugal import Frugal
from whatfits.estimator.memory.optimizers.galore_adafactor import GaLoreAdafactor
from whatfits.estimator.memory.optimizers.muon import Muon
from whatfits.estimator.memory.optimizers.soap import Soap
from whatfits.profiler.trace.optimizer_step import trace_optimizer_step

RANK = 64
BOTH = pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
FRUGAL = json.loads(Path(__file__).with_name("frugal_steps.json").read_text())


class OneAfterTheOther:
    """Two optimizers stepped in turn, as a run with Muon has them."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """What each keeps."""
        return {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def compared(
    program: OptimizerProgram, parameters: Sequence[ParameterTensor], traced: dict[StepPhase, list[Event]]
) -> tuple[dict[StepPhase, list[Event]], dict[StepPhase, list[Event]]]:
    """The program's and the traced events of the phases traced, in one form."""
    phases = program_phases(program, parameters, without_labels=[DEVICE_SCRATCH])
    return (
        {phase: outputs_sorted(phases[phase]) for phase in traced},
        {phase: outputs_sorted(events) for phase, events in traced.items()},
    )


@BOTH
@pytest.mark.parametrize("order", ORDERS)
def test_galore_adafactor(order: str, dtype_bytes: int) -> None:
    parameters = sorted(references.make_parameters(ORDERS[order]), key=references.is_projected)
    tensors = references.torch_parameters(parameters, dtype_bytes, "meta")
    settings = {"rank": RANK, "update_proj_gap": references.UPDATE_GAP, "scale": 0.25, "proj_type": "std"}
    optimizer = ReferenceGaLoreAdafactor(
        references.groups(parameters, tensors, **settings),
        lr=1e-3,
        relative_step=False,
        scale_parameter=False,
    )

    traced = traced_phases(optimizer, refresh_step=references.UPDATE_GAP)
    actual, expected = compared(GaLoreAdafactor(param_dtype_bytes=dtype_bytes, rank=RANK), parameters, traced)

    assert actual == expected


@BOTH
@pytest.mark.parametrize("order", ORDERS)
def test_fira(order: str, dtype_bytes: int) -> None:
    """Unprojected parameters in a group before the matrices; each norm seems to have grown, so that the limiter acts."""
    parameters = sorted(references.make_parameters(ORDERS[order]), key=references.is_projected)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    pairs = list(zip(parameters, tensors, strict=True))
    settings = {"rank": RANK, "update_proj_gap": 3, "scale": 0.25, "projection_type": "std"}
    groups: list[dict[str, Any]] = [
        {"params": [tensor for parameter, tensor in pairs if not references.is_projected(parameter)]},
        {"params": [t for parameter, t in pairs if references.is_projected(parameter)], **settings},
    ]
    optimizer = pytorch_optimizer.Fira(groups, lr=1e-3, foreach=True)
    traced: dict[StepPhase, list[Event]] = {}
    for phase in (StepPhase.first, StepPhase.steady, StepPhase.refresh):
        traced[phase] = [(e.kind, max(e.block, -1), e.nbytes) for e in trace_optimizer_step(optimizer)]
        for state in optimizer.state.values():
            if "scaling_grad" in state:
                state["scaling_grad"].mul_(0.01)

    actual, expected = compared(Fira(param_dtype_bytes=dtype_bytes, rank=RANK), parameters, traced)

    assert actual == expected


@BOTH
@pytest.mark.parametrize("order", ORDERS)
def test_muon(order: str, dtype_bytes: int) -> None:
    """torch's Muon for the matrices, then its AdamW for the rest."""
    parameters = references.make_parameters(ORDERS[order])
    tensors = references.torch_parameters(parameters, dtype_bytes, "meta")
    pairs = list(zip(parameters, tensors, strict=True))
    optimizer: Any = OneAfterTheOther(
        torch.optim.Muon([tensor for parameter, tensor in pairs if references.is_projected(parameter)]),
        torch.optim.AdamW([tensor for parameter, tensor in pairs if not references.is_projected(parameter)]),
    )
    for group in optimizer.optimizers[1].param_groups:
        group["foreach"] = True

    traced = traced_phases(optimizer, refresh_step=2)
    actual, expected = compared(Muon(param_dtype_bytes=dtype_bytes), parameters, traced)

    assert actual == expected


SOAP_NAMES = ("not a multiple of a block", "vector", "square", "vector of one")


@BOTH
def test_soap(dtype_bytes: int) -> None:
    """The refresh is the eleventh step.

    In bf16 the first step's refused eigh is kept alive by the tracer's own frame; the recorded step covers it.
    """
    parameters = references.make_parameters(SOAP_NAMES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    for tensor in tensors:
        assert tensor.grad is not None
        tensor.grad.mul_(0.1)
    traced = traced_phases(pytorch_optimizer.SOAP(tensors, lr=1e-3), refresh_step=10)
    if dtype_bytes == 2:
        del traced[StepPhase.first]

    actual, expected = compared(Soap(param_dtype_bytes=dtype_bytes), parameters, traced)

    assert actual == expected


def decoder_parts() -> dict[str, torch.nn.Module]:
    """Modules with the names by which Adam-mini tells blocks apart; keys have fewer heads than queries."""
    return {
        "embed_tokens": torch.nn.Embedding(1000, 64),
        "q_proj": torch.nn.Linear(64, 64, bias=False),
        "k_proj": torch.nn.Linear(64, 16, bias=False),
        "v_proj": torch.nn.Linear(64, 16, bias=False),
        "up_proj": torch.nn.Linear(64, 171, bias=False),
        "down_proj": torch.nn.Linear(171, 64, bias=False),
        "norm": torch.nn.RMSNorm(64),
        "lm_head": torch.nn.Linear(64, 1000, bias=False),
    }


ROLES = {
    "embed_tokens": ParameterRole.embedding,
    "norm": ParameterRole.vector,
    "lm_head": ParameterRole.head,
}


@BOTH
@pytest.mark.parametrize("last", ["lm_head", "norm", "k_proj"])
def test_adam_mini(last: str, dtype_bytes: int) -> None:
    """On meta the library's lists are those of CUDA.

    What ``torch.tensor`` makes in the first step is not in a trace; the recorded step covers it.
    """
    parts = decoder_parts()
    parts[last] = parts.pop(last)
    model = torch.nn.ModuleDict(parts).to("meta", references.DTYPES[dtype_bytes])
    parameters = []
    for name, tensor in model.named_parameters():
        tensor.grad = torch.empty_like(tensor)
        role = ROLES.get(name.removesuffix(".weight"), ParameterRole.linear)
        parameters.append(ParameterTensor(name=name, shape=tuple(tensor.shape), role=role))
    optimizer = pytorch_optimizer.AdamMini(model, lr=1e-3, num_embeds=64, num_heads=8, foreach=True)

    traced = traced_phases(optimizer, refresh_step=2)
    del traced[StepPhase.first]
    actual, expected = compared(AdamMini(param_dtype_bytes=dtype_bytes, num_heads=8), parameters, traced)

    assert actual == expected


def peak(events: Sequence[Sequence[Any]]) -> int:
    live = highest = 0
    for kind, _, nbytes in events:
        live += nbytes if kind == "alloc" else -nbytes
        highest = max(highest, live)
    return highest


@pytest.mark.parametrize("case", FRUGAL["cases"], ids=lambda c: f"{c['density']} {c['dtype_bytes']}")
def test_frugal(case: dict[str, Any]) -> None:
    """The authors' own steps; at a change of turns other tensors of equal shapes become active."""
    parameters = references.make_parameters(FRUGAL["parameters"])
    program = Frugal(param_dtype_bytes=case["dtype_bytes"], rank=round(256 * case["density"]))
    phases = program_phases(program, parameters)
    recorded = {phase: [tuple(event) for event in case["steps"][phase]] for phase in StepPhase}

    assert phases[StepPhase.first] == recorded[StepPhase.first]
    assert phases[StepPhase.steady] == recorded[StepPhase.steady]
    assert peak(phases[StepPhase.refresh]) == peak(recorded[StepPhase.refresh])


@pytest.mark.parametrize("case", FRUGAL["cases"], ids=lambda c: f"{c['density']} {c['dtype_bytes']}")
def test_frugal_states(case: dict[str, Any]) -> None:
    parameters = references.make_parameters(FRUGAL["parameters"])
    program = Frugal(param_dtype_bytes=case["dtype_bytes"], rank=round(256 * case["density"]))
    own = [state for parameter in parameters for state in program.states(parameter)]

    held = sum(state.nbytes for state in (*own, *program.shared_states(parameters)))

    assert held == sum(case["states"])
