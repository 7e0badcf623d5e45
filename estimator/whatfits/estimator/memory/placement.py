"""What spreading a model over data-parallel ranks adds to or takes from one rank's memory.

| placement | weights, states | gradients in backward | communication |
|---|---|---|---|
| single | whole | kept | none |
| ddp | whole | kept | one more copy of all gradients in buckets |
| ddp_bucket_view | whole | pending only: a complete gradient moves into its bucket | buckets, which are the gradients |
| fsdp | shards | shards kept, pending whole | gathered weights and reduce buffers, below |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from whatfits.estimator.memory.optimizers import ParameterTensor
from whatfits.estimator.memory.parameters import HeldParameter
from whatfits.estimator.specs import ParallelismSpec
from whatfits.estimator.units import MIB, round_allocation

__all__ = ["FsdpBuffers", "Placement", "ddp_bucket_sizes", "fsdp_buffers", "placement_of"]

FIRST_BUCKET_BYTES = 1 * MIB
BUCKET_BYTES = 25 * MIB


class Placement(StrEnum):
    """How a model's copies lie on the ranks."""

    SINGLE = "single"
    DDP = "ddp"
    DDP_BUCKET_VIEW = "ddp_bucket_view"
    FSDP = "fsdp"


def placement_of(parallelism: ParallelismSpec) -> Placement:
    """Placement that a parallelism spec asks for."""
    if parallelism.dp_shard_degree > 1:
        return Placement.FSDP
    if parallelism.dp_replicate_degree > 1:
        return Placement.DDP_BUCKET_VIEW if parallelism.gradient_as_bucket_view else Placement.DDP
    return Placement.SINGLE


def ddp_bucket_sizes(parameters: Sequence[ParameterTensor], dtype_bytes: int) -> list[int]:
    """Bytes of DDP's gradient buckets, in order of creation.

    Parameters are taken in reverse order; a bucket is closed once it holds at least its limit, 1 MiB for the first
    and 25 MiB for the others.

    Source: torch/csrc/distributed/c10d/reducer.cpp `compute_bucket_assignment_by_size`; torch/nn/parallel/
    distributed.py `bucket_cap_mb=25`, `dist._DEFAULT_FIRST_BUCKET_BYTES`.
    Assumes: one dtype; gradients become ready in reverse order of registration.
    """
    buckets: list[int] = []
    current = 0
    for parameter in reversed(parameters):
        current += parameter.numel * dtype_bytes
        if current >= (FIRST_BUCKET_BYTES if not buckets else BUCKET_BYTES):
            buckets.append(current)
            current = 0
    return [*buckets, current] if current else buckets


_LAYER = re.compile(r".*?\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FsdpBuffers:
    """Full-size tensors that FSDP keeps beside the shards, in bytes, by where the step is."""

    outside_layers: int
    forward_layer: int
    backward_layer: int

    @property
    def by_region(self) -> tuple[int, int, int]:
        """The three in the order of `peak.row_region`."""
        return (self.outside_layers, self.forward_layer, self.backward_layer)


def fsdp_buffers(parameters: Sequence[HeldParameter], *, reduce_bytes: int) -> FsdpBuffers:
    """Gathered weights and reduce buffers of FSDP2 full shard.

    outside_layers = root + 1 layer: what stands outside the layers is gathered once and stays, and the nearest layer
    is there already or still. forward_layer = root + 2 layers: the running layer and the prefetched one.
    backward_layer = root + 2 layers + the running layer's whole gradients twice, the second copy being the input of
    their reduce-scatter, in the dtype of the reduction.

    Source: torch/distributed/fsdp/_fully_shard.
    Assumes: `fully_shard` on each layer, the outermost numbered module of a parameter's name, and on the root, weights gathered in the dtype the module computes
    with, default prefetch; tensors held back by other streams are not modelled.
    """
    gathered: dict[str, int] = {}
    reduced: dict[str, int] = {}
    root = 0
    for parameter in parameters:
        nbytes = round_allocation(parameter.nbytes)
        numbered = _LAYER.match(parameter.name)
        if numbered is None:
            root += nbytes
            continue
        layer = numbered.group()
        gathered[layer] = gathered.get(layer, 0) + nbytes
        if parameter.trainable:
            copies = nbytes + round_allocation(parameter.numel * reduce_bytes)
            reduced[layer] = reduced.get(layer, 0) + copies
    layer_bytes = max(gathered.values(), default=0)
    return FsdpBuffers(
        outside_layers=root + layer_bytes,
        forward_layer=root + 2 * layer_bytes,
        backward_layer=root + 2 * layer_bytes + max(reduced.values(), default=0),
    )
