"""8-bit and paged optimizers of bitsandbytes: one fused kernel per parameter.

The 8-bit ones run on CUDA and, slowly, on the CPU; the paged ones need CUDA's managed memory. Our own block-wise family
(`adamw_8bit` and its like) holds the same bytes in pure torch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from whatfits.optim_impls.adapters.declared import LibraryDeclaration
from whatfits.optim_impls.adapters.library import load_library
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]

_BLOCK = 256
_SMALLEST = 4096
"""Elements below which bitsandbytes keeps 32-bit states (`min_8bit_size`)."""
_MAP = 256
_PAPER_8BIT = "Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861"
_PAPER_PAGED = "Dettmers et al.: QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314"


def _build(
    kind: str, paged: bool, groups: Sequence[dict[str, Any]], hyper: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make one.

    Raises:
        ValueError: a paged optimizer for parameters that are not on a CUDA device.
    """
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    if paged and devices != {"cuda"}:
        raise ValueError(
            f"parameters are on {', '.join(sorted(devices))}; accepted by {kind}: cuda, whose driver moves the pages"
        )
    optimizer: torch.optim.Optimizer = getattr(load_library("bitsandbytes.optim", "optimizers"), kind)(
        list(groups), **hyper
    )
    return optimizer


def _states_8bit(count: int, parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """Codes and one scale per block, or fp32 where there are few elements."""
    if parameter.numel < _SMALLEST:
        return _states_32bit(count, parameter, _hyper)
    blocks = -(-parameter.numel // _BLOCK)
    states: list[StateTensor] = []
    for number in range(1, count + 1):
        states += [
            StateTensor(f"state{number}", parameter.shape, torch.uint8),
            StateTensor(f"absmax{number}", (blocks,), torch.float32),
        ]
    return tuple(states)


def _states_32bit(count: int, parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """fp32 whatever the parameter's dtype."""
    return tuple(StateTensor(f"state{n}", parameter.shape, torch.float32) for n in range(1, count + 1))


def _maps(count: int, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """Quantisation maps, once per optimizer."""
    return tuple(StateTensor(f"qmap{n}", (_MAP,), torch.float32) for n in range(1, count + 1))


def _no_maps(_hyper: Hyper) -> tuple[StateTensor, ...]:
    return ()


def _entry(
    name: str,
    kind: str,
    title: str,
    summary: str,
    defaults: Mapping[str, Any],
    *,
    count: int = 2,
    bits: int = 8,
    trainer: str | None = None,
) -> OptimizerEntry:
    paged = kind.startswith("Paged")
    rule: Callable[[Parameter, Hyper], tuple[StateTensor, ...]]
    rule = partial(_states_8bit if bits == 8 else _states_32bit, count)
    return OptimizerEntry(
        name=name,
        title=title,
        summary=summary,
        paper=_PAPER_PAGED if paged else _PAPER_8BIT,
        licence="MIT",
        source=f"bitsandbytes.optim.{kind}",
        build=partial(_build, kind, paged),
        defaults=defaults,
        declaration=LibraryDeclaration(
            rule=rule, treats=title, shared=partial(_maps, count) if bits == 8 else _no_maps
        ),
        capabilities=Capabilities(),
        extra="optimizers",
        trainer_name=trainer,
    )


_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_LION = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
_SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}

ENTRIES = (
    _entry(
        "adamw_8bit_bnb",
        "AdamW8bit",
        "8-bit AdamW of bitsandbytes",
        "Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
        _ADAM,
        trainer="adamw_bnb_8bit",
    ),
    _entry(
        "adam_8bit_bnb",
        "Adam8bit",
        "8-bit Adam of bitsandbytes",
        "Both moments in 8 bits, about 2 bytes per parameter. Weight decay is not added to the gradient: bitsandbytes' "
        "CPU code shrinks the weights by lr weight_decay, as its AdamW8bit does (0.50.2).",
        {**_ADAM, "weight_decay": 0.0},
    ),
    _entry(
        "lion_8bit_bnb",
        "Lion8bit",
        "8-bit Lion of bitsandbytes",
        "The momentum in 8 bits, about 1 byte per parameter.",
        _LION,
        count=1,
        trainer="lion_8bit",
    ),
    _entry(
        "sgdm_8bit_bnb",
        "SGD8bit",
        "8-bit momentum of bitsandbytes",
        "The momentum in 8 bits, about 1 byte per parameter.",
        _SGD,
        count=1,
    ),
    _entry(
        "adamw_32bit_bnb",
        "AdamW32bit",
        "32-bit AdamW of bitsandbytes",
        "fp32 moments even for bf16 parameters, updated by one fused kernel.",
        _ADAM,
        bits=32,
    ),
    _entry(
        "paged_adamw",
        "PagedAdamW",
        "Paged AdamW",
        "fp32 moments in managed memory, which gives way to the host when the GPU is full. CUDA only.",
        _ADAM,
        bits=32,
        trainer="paged_adamw_32bit",
    ),
    _entry(
        "paged_adamw_8bit",
        "PagedAdamW8bit",
        "Paged 8-bit AdamW",
        "8-bit moments in managed memory, which gives way to the host when the GPU is full. CUDA only.",
        _ADAM,
        trainer="paged_adamw_8bit",
    ),
    _entry(
        "paged_lion_8bit",
        "PagedLion8bit",
        "Paged 8-bit Lion",
        "An 8-bit momentum in managed memory. CUDA only.",
        _LION,
        count=1,
        trainer="paged_lion_8bit",
    ),
)
