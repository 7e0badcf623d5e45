"""BAdam of the badam package: AdamW in fp32 on one layer at a time, all others frozen meanwhile."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from whatfits.optim_impls.adapters.declared import LibraryDeclaration, fp32_scalar
from whatfits.optim_impls.adapters.library import load_library
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]


def _build(groups: Sequence[dict[str, Any]], hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """BlockOptimizer around AdamW; it freezes all parameters but those of a block at once.

    Raises:
        ValueError: no parameter's name says that it belongs to a layer.
    """
    library = load_library("badam", "badam")
    named = [pair for g in groups for pair in zip(g["param_names"], g["params"], strict=True)]
    if not any("layers." in name for name, _ in named):
        raise ValueError(
            f"no parameter is named like layers.0.x, but {named[0][0]}; badam takes its blocks from that"
        )
    base = torch.optim.AdamW(
        [parameter for _, parameter in named],
        foreach=True,
        **{k: hyper[k] for k in ("lr", "betas", "eps", "weight_decay")},
    )
    optimizer: torch.optim.Optimizer = library.BlockOptimizer(
        base,
        named,
        switch_block_every=hyper["switch_block_every"],
        switch_mode=hyper["switch_mode"],
        start_block=hyper["start_block"],
        verbose=0,
    )
    return optimizer


def _states(parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """Of a parameter in the active layer; all others have none."""
    names = ("master_weight", "exp_avg", "exp_avg_sq")
    return (fp32_scalar("step"), *(StateTensor(name, parameter.shape, torch.float32) for name in names))


ENTRIES = (
    OptimizerEntry(
        name="badam",
        title="BAdam",
        summary="AdamW in fp32 on one layer at a time: 12 bytes per parameter of one layer, gradients of one layer.",
        paper="Luo et al.: BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models, "
        "arXiv:2404.02827",
        licence="Apache-2.0",  # its repository; the classifier of its wheel says MIT
        source="badam.BlockOptimizer",
        build=_build,
        defaults={
            "lr": 1e-5,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "switch_block_every": 100,
            "switch_mode": "random",
            "start_block": None,
        },
        declaration=LibraryDeclaration(
            rule=_states,
            treats="adamw, one layer at a time",
            interval=lambda hyper: hyper["switch_block_every"],
        ),
        capabilities=Capabilities(
            layerwise=False,
            shards=frozenset(),
            reasons={"layerwise": "The gradients of a layer are copied to fp32 before any of them is used."},
        ),
        extra="badam",
    ),
)
