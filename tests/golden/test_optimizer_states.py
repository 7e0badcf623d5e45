"""Persistent bytes of each parameter, measured from real optimizers, equal the programs' formulas to the byte.

`optimizer_states.jsonl` has 131 optimizers of 5 parameters each: 655 counts. Every row is either of a method of the
product and tested, or listed here with the reason why it is not.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from whatfits.estimator.memory.optimizers import (
    OPTIMIZERS,
    GaLoreAdamW,
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    build_optimizer_program,
)
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec

HEADER, *ROWS = map(json.loads, Path(__file__).with_name("optimizer_states.jsonl").read_text().splitlines())
RANK = HEADER["rank"]
SHAPES: dict[str, tuple[int, ...]] = {
    "wide_256x1024": (256, 1024),
    "tall_1024x256": (1024, 256),
    "square_512": (512, 512),
    "vec_512": (512,),
    "big_2048x512": (2048, 512),
}
QUANTISATION_MAP_BYTES = 1024
"""bitsandbytes lists the maps all parameters share with each of them."""
NORMS_OF_ALL = ("weight_norm", "adam_norm", "trust_ratio")
"""LAMB's parameters hold views of tensors with one number per parameter."""

LEFT_TO_ADAMW = {"torch.optim.Muon()": ("vec_512",)}
"""Parameters the measured optimizer does not take, for which a run has another one."""

Build = Callable[[int], OptimizerProgram]


def method(name: str, *, rank: int | None = None, fused: bool = False) -> tuple[OptimizerName, Build]:
    """The product's program of a method."""
    implementation = OptimizerImplementation.FUSED if fused else OptimizerImplementation.FOREACH
    spec = OptimizerSpec(name=OptimizerName(name), rank=rank, implementation=implementation)
    return spec.name, lambda s: build_optimizer_program(spec, param_dtype_bytes=s, hidden_size=512)


METHODS: dict[str, tuple[OptimizerName, Build]] = {
    "torch.optim.SGD(lr=0.1)": method("sgd"),
    "torch.optim.SGD(lr=0.1,momentum=0.9)": method("sgdm"),
    "torch.optim.Adam()": method("adamw"),
    "torch.optim.AdamW()": method("adamw"),
    "torch.optim.AdamW(foreach=True)": method("adamw"),
    "torch.optim.AdamW(fused=True)": method("adamw", fused=True),
    "torch.optim.Adafactor()": method("adafactor"),
    "torch.optim.Adafactor(foreach=True)": method("adafactor"),
    "torch.optim.Muon()": method("muon"),
    "bnb.optim.Adam8bit": method("adamw_8bit"),
    "bnb.optim.AdamW8bit": method("adamw_8bit"),
    "bnb.optim.AdamW32bit": method("paged_adamw"),
    "bnb.optim.PagedAdamW8bit": method("paged_adamw_8bit"),
    "pytorch_optimizer.Adan": method("adan"),
    "pytorch_optimizer.Lion": method("lion"),
    "lion_pytorch.Lion": method("lion"),
    "pytorch_optimizer.AdamMini": method("adam_mini"),
    "pytorch_optimizer.CAME": method("came"),
    "pytorch_optimizer.SOAP": method("soap"),
    "pytorch_optimizer.ScheduleFreeAdamW": method("schedule_free_adamw"),
    "schedulefree.AdamWScheduleFree": method("schedule_free_adamw"),
    "pytorch_optimizer.Lamb": method("lamb"),
    "pytorch_optimizer.APOLLO": method("apollo", rank=RANK),
    "apollo_torch.APOLLOAdamW(r=64,channel)": method("apollo", rank=RANK),
    "apollo_torch.APOLLOAdamW(r=1,tensor)": method("apollo_mini"),
    "pytorch_optimizer.GaLore": (
        OptimizerName.GALORE_ADAMW,
        lambda s: GaLoreAdamW(param_dtype_bytes=s, rank=RANK, keeps_svd_factor=False),
    ),
    "galore_torch.GaLoreAdamW": method("galore_adamw", rank=RANK),
    "galore_torch.GaLoreAdafactor": method("galore_adafactor", rank=RANK),
    "pytorch_optimizer.Fira": method("fira", rank=RANK),
    "fira.FiraAdamW": (
        OptimizerName.FIRA,
        lambda s: Fira(param_dtype_bytes=s, rank=RANK, keeps_svd_factor=True),
    ),
}
"""Measured optimizer to the method it is of, and the program that answers for it."""

OTHER_VARIANT = "a variant of a method of the product that keeps other states than the code modelled"
NOT_OFFERED = "not a method of the product"
NOT_TESTED = {
    "torch.optim.AdamW(amsgrad=True)": OTHER_VARIANT,
    "pytorch_optimizer.AdaFactor": OTHER_VARIANT,
    "transformers.Adafactor(default,lr=None)": OTHER_VARIANT,
    "transformers.Adafactor(beta1=.9)": OTHER_VARIANT,
    "came_pytorch.CAME": OTHER_VARIANT,
    "pytorch_optimizer.Muon": OTHER_VARIANT,
    "apollo_torch.APOLLOAdamW(r=64,svd)": OTHER_VARIANT,
    "pytorch_optimizer.FlashAdamW": OTHER_VARIANT,
    **dict.fromkeys(
        (
            *(f"torch.optim.{name}()" for name in ("RMSprop", "Adagrad")),
            *(f"bnb.optim.{name}8bit" for name in ("Lion", "SGD", "Adagrad", "RMSprop", "LAMB", "LARS", "AdEMAMix")),
            "bnb.optim.Lion32bit",
            *(
                f"pytorch_optimizer.{name}"
                for name in (
                    *("SM3", "Shampoo", "ScalableShampoo", "ScheduleFreeSGD", "Adalite", "AdEMAMix", "MARS"),
                    *("StableAdamW", "Prodigy", "SignSGD", "Tiger", "Alice", "RACS", "Conda", "LoRARite", "Grams"),
                    "AdaMuon",
                )
            ),
            "schedulefree.SGDScheduleFree",
        ),
        NOT_OFFERED,
    ),
}  # fmt: skip


def rows_to_test() -> list[dict[str, Any]]:
    """Rows of methods whose program is there."""
    return [row for row in ROWS if row["optimizer"] in METHODS and METHODS[row["optimizer"]][0] in OPTIMIZERS]


def updated_parameters(row: dict[str, Any]) -> list[str]:
    """The parameters the measured optimizer updates."""
    return [name for name in row["states"] if name not in LEFT_TO_ADAMW.get(row["optimizer"], ())]


def own_bytes(nbytes: int, tensors: list[str]) -> int:
    """Without what all parameters share."""
    maps = QUANTISATION_MAP_BYTES * sum(tensor.startswith("qmap") for tensor in tensors)
    return nbytes - maps


@pytest.mark.parametrize("row", rows_to_test(), ids=lambda row: f"{row['optimizer']} {row['dtype']}")
def test_each_parameters_state_to_the_byte(row: dict[str, Any]) -> None:
    _, build = METHODS[row["optimizer"]]
    dtype_bytes = 4 if row["dtype"] == "float32" else 2
    program = build(dtype_bytes)
    parameters = {
        name: ParameterTensor(
            name=name,
            shape=SHAPES[name],
            role=ParameterRole.vector if len(SHAPES[name]) == 1 else ParameterRole.linear,
        )
        for name in updated_parameters(row)
    }
    norms = len(NORMS_OF_ALL) * len(parameters) * dtype_bytes
    expected = {
        name: own_bytes(nbytes, tensors) - (norms if NORMS_OF_ALL[0] in tensors else 0)
        for name, (nbytes, tensors) in row["states"].items()
        if name in parameters
    }

    states = {name: program.states(parameter) for name, parameter in parameters.items()}

    assert {name: sum(s.nbytes for s in tensors) for name, tensors in states.items()} == expected


def test_every_row_is_tested_or_has_a_reason_not_to_be() -> None:
    """30 optimizers in two dtypes, 300 counts of methods of the product less the two vectors Muon does not take."""
    names = {row["optimizer"] for row in ROWS}
    counts = [len(updated_parameters(row)) for row in ROWS if row["optimizer"] in METHODS]

    assert names == set(METHODS) | set(NOT_TESTED)
    assert not set(METHODS) & set(NOT_TESTED)
    assert sum(counts) == 298
