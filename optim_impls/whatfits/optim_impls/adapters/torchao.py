"""AdamW with 8-bit, 4-bit and fp8 states of torchao; its update is compiled on the first step."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from whatfits.optim_impls.adapters.declared import LibraryDeclaration, fp32_scalar, like_parameter
from whatfits.optim_impls.adapters.library import load_library
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]

_SMALLEST = 4096
"""Elements below which torchao does not quantise (torchao/optim/adam.py, `_new_buffer`)."""
_FORMATS = {"AdamW8bit": 8, "AdamW4bit": 4, "AdamWFp8": 8}


def _build(kind: str, groups: Sequence[dict[str, Any]], hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = getattr(load_library("torchao.optim", "optimizers"), kind)(
        list(groups), **hyper
    )
    return optimizer


def _states(kind: str, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    block = hyper["block_size"]
    if parameter.numel < _SMALLEST or parameter.numel % block:
        return (fp32_scalar("step"), *like_parameter("exp_avg", "exp_avg_sq")(parameter, hyper))
    states = [fp32_scalar("step")]
    for name in ("exp_avg", "exp_avg_sq"):
        states += [
            StateTensor(f"{name}.codes", (parameter.numel * _FORMATS[kind] // 8,), torch.uint8),
            StateTensor(f"{name}.scale", (parameter.numel // block,), torch.float32),
        ]
        if kind != "AdamWFp8":
            states.append(StateTensor(f"{name}.qmap", (2 ** _FORMATS[kind],), torch.float32))
    return tuple(states)


def _entry(
    name: str, kind: str, block_size: int, title: str, summary: str, paper: str, trainer: str | None = None
) -> OptimizerEntry:
    rule: Callable[[Parameter, Hyper], tuple[StateTensor, ...]] = partial(_states, kind)
    return OptimizerEntry(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        licence="BSD-3-Clause",
        source=f"torchao.optim.{kind}",
        build=partial(_build, kind),
        defaults={
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 1e-2,
            "block_size": block_size,
            "bf16_stochastic_round": False,
        },
        declaration=LibraryDeclaration(rule=rule, treats=title),
        capabilities=Capabilities(shards=frozenset({"ddp", "fsdp2"})),
        extra="optimizers",
        trainer_name=trainer,
    )


ENTRIES = (
    _entry(
        "adamw_8bit_torchao",
        "AdamW8bit",
        256,
        "8-bit AdamW of torchao",
        "Both moments in 8 bits, about 2 bytes per parameter, and a quantisation map per tensor.",
        "Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
        "adamw_torch_8bit",
    ),
    _entry(
        "adamw_4bit",
        "AdamW4bit",
        128,
        "4-bit AdamW",
        "Both moments in 4 bits, about 1 byte per parameter.",
        "Li et al.: Memory Efficient Optimizers with 4-bit States, arXiv:2309.01507",
        "adamw_torch_4bit",
    ),
    _entry(
        "adamw_fp8",
        "AdamWFp8",
        256,
        "fp8 AdamW",
        "Both moments in fp8, about 2 bytes per parameter.",
        "Fishman et al.: Scaling FP8 training to trillion-token LLMs, arXiv:2409.12517",
    ),
)
