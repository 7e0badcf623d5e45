"""Schedule-Free AdamW of the schedulefree package."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from whatfits.optim_impls.adapters.declared import LibraryDeclaration, like_parameter
from whatfits.optim_impls.adapters.library import load_library
from whatfits.optim_impls.declare import Capabilities
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]


def _build(groups: Sequence[dict[str, Any]], hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """In training mode; ``optimizer.eval()`` before evaluating and saving, ``optimizer.train()`` after."""
    optimizer: Any = load_library("schedulefree", "optimizers").AdamWScheduleFree(list(groups), **hyper)
    optimizer.train()
    return optimizer  # type: ignore[no-any-return]


ENTRIES = (
    OptimizerEntry(
        name="schedule_free_adamw",
        title="Schedule-Free AdamW",
        summary="AdamW without a learning-rate schedule; the same two states per parameter.",
        paper="Defazio et al.: The Road Less Scheduled, arXiv:2405.15682",
        licence="Apache-2.0",
        source="schedulefree.AdamWScheduleFree",
        build=_build,
        defaults={
            "lr": 2.5e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "r": 0.0,
            "weight_lr_power": 2.0,
        },
        declaration=LibraryDeclaration(rule=like_parameter("z", "exp_avg_sq"), treats="schedule-free adamw"),
        capabilities=Capabilities(shards=frozenset({"ddp", "fsdp2"})),
        extra="optimizers",
        trainer_name="schedule_free_adamw",
    ),
)
