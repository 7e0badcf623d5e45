"""How the run is spread over devices."""

from typing import Annotated

from pydantic import Field

from whatfits.estimator.specs.base import Degree, Spec
from whatfits.estimator.specs.enums import Offload

__all__ = ["ParallelismSpec"]


class ParallelismSpec(Spec):
    """Sizes of the parallelism axes; their product is the number of GPUs (experts live inside the others)."""

    dp_replicate_degree: Degree = 1
    """Data-parallel ranks that hold a full copy (DDP); filled up to the number of GPUs when left out."""
    dp_shard_degree: Degree = 1
    """Data-parallel ranks that hold a shard (FSDP, ZeRO)."""
    zero_stage: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    """What the shards cover: 1 optimizer states, 2 and gradients, 3 and weights (FSDP full shard)."""
    tp_degree: Degree = 1
    """Tensor parallelism."""
    sequence_parallel: bool = False
    """Split the norms and residuals along the sequence within the tensor-parallel group (Megatron)."""
    pp_degree: Degree = 1
    """Pipeline stages."""
    cp_degree: Degree = 1
    """Context parallelism."""
    ep_degree: Degree = 1
    """Expert parallelism, within dp_shard x cp x tp."""
    gradient_as_bucket_view: bool = False
    """DDP: let gradients live in the communication buckets instead of beside them."""
    reshard_after_forward: bool = True
    """FSDP: free the gathered weights after the forward pass and gather them again for the backward pass."""
    offload: Offload = Offload.NONE
    """What lives in host memory."""

    @property
    def dp_degree(self) -> int:
        """Data-parallel ranks, replicated and sharded."""
        return self.dp_replicate_degree * self.dp_shard_degree

    @property
    def world_size(self) -> int:
        """Ranks in all: dp x tp x pp x cp."""
        return self.dp_degree * self.tp_degree * self.pp_degree * self.cp_degree
