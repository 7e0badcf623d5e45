"""Several processes under torchrun: this one's place among them, and the model spread over them as users do it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import casts_when_gathered
from whatfits.estimator.memory.placement import Placement, placement_of
from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.trace.configs import layers_of
from whatfits.profiler.trace.training_step import AUTOCAST_DTYPES

__all__ = ["Ranks", "spread", "without_reduction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that torchrun started; alone where it started none."""

    rank: int = 0
    local_rank: int = 0
    num_ranks: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As torchrun's variables say."""
        names = {"rank": "RANK", "local_rank": "LOCAL_RANK", "num_ranks": "WORLD_SIZE"}
        return cls(**{name: int(os.environ[key]) for name, key in names.items() if key in os.environ})

    def require(self, num_ranks: int) -> None:
        """Refuse a run of another number of ranks.

        Raises:
            UnsupportedError: there are more or fewer processes than the run has ranks.
        """
        if num_ranks != self.num_ranks:
            reason = f"the run has {num_ranks} ranks, and {self.num_ranks} processes were started"
            accepted = f"{self.num_ranks}, or torchrun --nproc-per-node {num_ranks}"
            raise UnsupportedError("hardware.num_gpus", num_ranks, accepted, reason=reason)

    @contextmanager
    def joined(self, device: str) -> Iterator[None]:
        """While active the processes can talk to each other, and each has its own device."""
        if device == "cuda":
            torch.cuda.set_device(self.local_rank)
        if self.num_ranks == 1:
            yield
            return
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()


def spread(recipe: Recipe, model: nn.Module, device: str) -> nn.Module:
    """What the training loop calls: the model itself, in DDP, or with its layers and itself sharded (FSDP2)."""
    axes = recipe.parallelism
    placement = placement_of(axes)
    if placement is Placement.SINGLE:
        return model
    if placement is not Placement.FSDP:
        wrapped: nn.Module = DistributedDataParallel(
            model,
            device_ids=None if device == "cpu" else [torch.cuda.current_device()],
            gradient_as_bucket_view=axes.gradient_as_bucket_view,
        )
        return wrapped
    options: dict[str, Any] = {"mesh": init_device_mesh(device, (axes.dp_shard_degree,))}
    if casts_when_gathered(recipe.training):
        half = AUTOCAST_DTYPES[recipe.training.precision]
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    for _, layer in layers_of(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """For micro-batches before the last: DDP then adds up gradients on each rank; FSDP2 reduces them every time."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
