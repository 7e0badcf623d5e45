"""States and peaks measured once and kept as numbers, and sizes other people published."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from whatfits.estimator.memory.optimizers import (
    AdamW8bit,
    AdamWForeach,
    AdamWForLoop,
    AdamWFused,
    Apollo,
    GaLoreAdamW,
    OptimizerEvent,
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    Sgd,
    StepPhase,
    build_optimizer_program,
)
from whatfits.estimator.memory.optimizers.adam_mini import AdamMini
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.memory.optimizers.galore_adafactor import GaLoreAdafactor
from whatfits.estimator.memory.optimizers.muon import Muon
from whatfits.estimator.memory.optimizers.soap import Soap
from whatfits.estimator.specs import OptimizerName, OptimizerSpec

MEASURED = json.loads(Path(__file__).with_name("measured.json").read_text())
ROWS = {row["row"]: row for row in MEASURED["rows"]}
RANK = MEASURED["rank"]
PROGRAMS: dict[str, Callable[[int], OptimizerProgram]] = {
    "sgd": lambda s: Sgd(param_dtype_bytes=s),
    "adamw for_loop": lambda s: AdamWForLoop(param_dtype_bytes=s),
    "adamw foreach": lambda s: AdamWForeach(param_dtype_bytes=s),
    "adamw fused": lambda s: AdamWFused(param_dtype_bytes=s),
    "adamw_8bit": lambda s: AdamW8bit(param_dtype_bytes=s),
    "galore_adamw": lambda s: GaLoreAdamW(param_dtype_bytes=s, rank=RANK),
    "galore_adamw, pytorch-optimizer": lambda s: GaLoreAdamW(
        param_dtype_bytes=s, rank=RANK, keeps_svd_factor=False
    ),
    "apollo": lambda s: Apollo(param_dtype_bytes=s, rank=RANK),
    "apollo, pytorch-optimizer": lambda s: Apollo(param_dtype_bytes=s, rank=RANK),
    "apollo_mini": lambda s: Apollo(param_dtype_bytes=s, rank=1, scales_tensor=True),
    "galore_adafactor": lambda s: GaLoreAdafactor(param_dtype_bytes=s, rank=RANK),
    "fira, authors' package": lambda s: Fira(param_dtype_bytes=s, rank=RANK, keeps_svd_factor=True),
    "fira": lambda s: Fira(param_dtype_bytes=s, rank=RANK),
    "adam_mini": lambda s: AdamMini(param_dtype_bytes=s),
    "soap": lambda s: Soap(param_dtype_bytes=s),
    "muon": lambda s: Muon(param_dtype_bytes=s),
}
SHAPES: dict[str, tuple[int, ...]] = {
    "wide_256x1024": (256, 1024),
    "tall_1024x256": (1024, 256),
    "square_512": (512, 512),
    "vec_512": (512,),
    "big_2048x512": (2048, 512),
}
STATES_ONLY = ("pytorch-optimizer", "galore_adafactor", "fira", "adam_mini", "soap", "muon")
"""Cases whose steps ran with other buffers or lists on the CPU than the programs say; their states are compared."""


STEPPED = [n for n, row in ROWS.items() if not any(name in row["case"] for name in STATES_ONLY)]


def measured_program(row: dict[str, Any]) -> OptimizerProgram:
    return PROGRAMS[row["case"]](4 if row["dtype"] == "float32" else 2)


def measured_parameters(row: dict[str, Any]) -> list[ParameterTensor]:
    """The parameters in the order stepped: the low-rank methods had their unprojected group first."""
    names = list(row["states"])
    if is_low_rank(row):
        names.sort(key=lambda name: name != "vec_512")
    return [
        ParameterTensor(
            name=name,
            shape=SHAPES[name],
            role=ParameterRole.vector if name == "vec_512" else ParameterRole.linear,
        )
        for name in names
    ]


def is_low_rank(row: dict[str, Any]) -> bool:
    return bool(row["case"].startswith(("apollo", "galore", "fira")))


def peak(events: Iterable[OptimizerEvent]) -> int:
    """Peak of live bytes, not rounded, as the measurement counted."""
    live = highest = 0
    for event in events:
        live += event.nbytes if event.kind == "alloc" else -event.nbytes
        highest = max(highest, live)
    return highest


@pytest.mark.parametrize("row_number", ROWS)
def test_measured_state_of_each_tensor(row_number: int) -> None:
    """bitsandbytes lists the two shared quantisation maps with each tensor: 2048 bytes less once they are not."""
    row = ROWS[row_number]
    program = measured_program(row)
    expected = {
        name: nbytes - 1024 * sum(".qmap" in tensor for tensor in tensors)
        for name, (nbytes, tensors) in row["states"].items()
    }

    actual = {p.name: sum(s.nbytes for s in program.states(p)) for p in measured_parameters(row)}

    assert actual == expected


@pytest.mark.parametrize("row_number", STEPPED)
def test_measured_peak_of_the_first_step(row_number: int) -> None:
    row = ROWS[row_number]
    events = measured_program(row).events(measured_parameters(row), StepPhase.first)
    # Neither what the SVD allocates inside its kernel nor the CPU's own quantisation maps were seen.
    seen = [e for e in events if e.label not in (DEVICE_SCRATCH, "qmap1", "qmap2")]

    assert peak(seen) == row["first_step_peak_bytes"]


@pytest.mark.parametrize("row_number", STEPPED)
def test_measured_peak_of_a_later_step(row_number: int) -> None:
    """The measurement did not see frees of tensors older than the step, and its norms did not grow.

    Both matter to APOLLO's limiter only: three replaced norms, less the limiter, are two numbers.
    """
    row = ROWS[row_number]
    events = measured_program(row).events(measured_parameters(row), StepPhase.steady)
    seen = [e for e in events if e.label not in (DEVICE_SCRATCH, "limiter")]
    counted = [e for e in seen if not (e.kind == "free" and e.label == "limiter_norm")]

    assert peak(counted) == row["later_step_peak_bytes"]


def llama(layers: int, hidden: int, ffn: int, vocab: int = 32_000) -> list[ParameterTensor]:
    """Parameters of a LLaMA with full attention heads and untied embeddings."""
    square, up, down = (hidden, hidden), (ffn, hidden), (hidden, ffn)
    linear = [square] * 4 + [up, up, down]
    shapes: list[tuple[tuple[int, ...], ParameterRole]] = [((vocab, hidden), ParameterRole.embedding)]
    for _ in range(layers):
        shapes += [(shape, ParameterRole.linear) for shape in linear]
        shapes += [((hidden,), ParameterRole.vector)] * 2
    shapes += [((hidden,), ParameterRole.vector), ((vocab, hidden), ParameterRole.head)]
    return [ParameterTensor(name=str(i), shape=shape, role=role) for i, (shape, role) in enumerate(shapes)]


def unrounded_state_bytes(
    spec: OptimizerSpec, parameters: list[ParameterTensor], hidden: int
) -> dict[ParameterRole, int]:
    """State bytes by role, not rounded."""
    program = build_optimizer_program(spec, param_dtype_bytes=2, hidden_size=hidden)
    total = dict.fromkeys(ParameterRole, 0)
    for parameter in parameters:
        total[parameter.role] += sum(s.nbytes for s in program.states(parameter) if s.on_device)
    return total


def test_galore_1b_as_published() -> None:
    """1988.34 MiB of optimizer memory for LLaMA-1B with rank 512.

    Published for COAP (README of its repository, arXiv:2412.00071), whose states have GaLore's shapes.
    """
    states = unrounded_state_bytes(
        OptimizerSpec(name=OptimizerName.GALORE_ADAMW), llama(24, 2048, 5461), 2048
    )

    assert round(sum(states.values()) / 2**20, 2) == 1988.34


def test_apollo_7b_moments_as_published() -> None:
    """1.6G for LLaMA-7B with rank 256: moments of linear layers, decimal (arXiv:2412.05270, Table 3)."""
    parameters = [p for p in llama(32, 4096, 11008) if p.role is ParameterRole.linear]
    program = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.APOLLO), param_dtype_bytes=2, hidden_size=4096
    )
    moments = sum(s.nbytes for p in parameters for s in program.states(p) if s.name.startswith("exp_avg"))

    assert round(moments / 1e9, 1) == 1.6


def test_adamw_7b_in_bf16() -> None:
    """4 bytes for each of 6,738,415,616 parameters (Touvron et al., LLaMA-7B)."""
    states = unrounded_state_bytes(OptimizerSpec(name=OptimizerName.ADAMW), llama(32, 4096, 11008), 4096)

    assert sum(states.values()) == 4 * 6_738_415_616
