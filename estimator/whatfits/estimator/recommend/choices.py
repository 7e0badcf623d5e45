"""What a plan tries: optimizers with their ranks, placements, micro-batches, checkpointing."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from whatfits.estimator.catalog import ResolvedPlanRequest, fill_adapter, fill_optimizer
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    Framework,
    Method,
    ModelSpec,
    OptimizerImplementation,
    OptimizerName,
    OptimizerSpec,
    ParallelismSpec,
    Precision,
    RunSpec,
    TrainingSpec,
)
from whatfits.estimator.specs.layerwise import (
    FORWARD_ONLY_OPTIMIZERS,
    IN_BACKWARD_OPTIMIZERS,
    ONE_LAYER_OPTIMIZERS,
    WHOLE_STEP_OPTIMIZERS,
)
from whatfits.estimator.specs.low_rank import (
    FACTORED_OPTIMIZERS,
    RANKED_OPTIMIZERS,
    WHOLE_MATRIX_OPTIMIZERS,
)

__all__ = ["PLACEMENT_WORDS", "BatchPoint", "Choice", "batch_points", "choices", "optimizers_asked", "run_of"]

LARGEST_MICRO_BATCH = 512

PLACEMENT_WORDS = {
    Placement.SINGLE: "one GPU",
    Placement.DDP: "DDP",
    Placement.DDP_BUCKET_VIEW: "DDP with gradient_as_bucket_view",
    Placement.FSDP: "FSDP full shard",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One optimizer setting on one placement, and how the model is trained."""

    optimizer: OptimizerSpec
    placement: Placement
    layerwise: bool
    method: Method = Method.FULL
    precision: Precision = Precision.BF16
    framework: Framework = Framework.PYTORCH

    @property
    def words(self) -> str:
        """The placement for a reader, with what of the training is not the default."""
        unusual = (
            str(value) if value is not default else ""
            for value, default in (
                (self.method, Method.FULL),
                (self.precision, Precision.BF16),
                (self.framework, Framework.PYTORCH),
            )
        )
        layerwise = "layer-wise update" if self.layerwise else ""
        return ", ".join(filter(None, (PLACEMENT_WORDS[self.placement], *unusual, layerwise)))

    def training(self, seq_len: int, point: "BatchPoint") -> TrainingSpec:
        """How the model is trained at one batch point."""
        return TrainingSpec(
            method=self.method,
            framework=self.framework,
            precision=self.precision,
            micro_batch_size=point.micro_batch_size,
            seq_len=seq_len,
            grad_accum_steps=point.grad_accum_steps,
            optimizer=self.optimizer,
            layerwise_update=self.layerwise,
            activation_checkpointing=point.checkpointing,
            adapter=fill_adapter(self.method, None),
        )


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """One micro-batch size with its accumulation and checkpointing."""

    micro_batch_size: int
    grad_accum_steps: int
    checkpointing: ActivationCheckpointing


def choices(request: ResolvedPlanRequest) -> list[Choice]:
    """Every optimizer setting on every placement that is possible, in a fixed order."""
    asked = request.request
    ways = product(
        dict.fromkeys(asked.methods), dict.fromkeys(asked.precisions), dict.fromkeys(asked.frameworks)
    )
    found = [
        Choice(
            optimizer=optimizer,
            placement=placement,
            layerwise=layerwise,
            method=method,
            precision=precision,
            framework=framework,
        )
        for method, precision, framework in ways
        for name in optimizers_asked(request)
        for optimizer in _settings(name, request)
        for placement, layerwise in _placements(name, request.hardware.num_gpus)
    ]
    return [choice for choice in found if _is_modelled(choice, request.model)]


def optimizers_asked(request: ResolvedPlanRequest) -> tuple[OptimizerName, ...]:
    """The optimizers of the request, each once; all that are modelled where none is named."""
    asked = request.request.optimizers
    return tuple(dict.fromkeys(OptimizerName(name) for name in (OPTIMIZERS if asked == "all" else asked)))


def _is_modelled(choice: Choice, model: ModelSpec) -> bool:
    """Whether `require_supported` takes the combination of placement and training."""
    if choice.optimizer.name in FACTORED_OPTIMIZERS and not model.matrices_only:
        return False
    if model.config is not None and (
        choice.method is not Method.FULL or choice.optimizer.name in ONE_LAYER_OPTIMIZERS
    ):
        return False
    sharded = choice.placement is Placement.FSDP
    if choice.method is not Method.FULL and (sharded or choice.optimizer.name in RANKED_OPTIMIZERS):
        return False
    if choice.optimizer.name in ONE_LAYER_OPTIMIZERS and (
        choice.method is not Method.FULL or choice.precision in (Precision.BF16_MASTER, Precision.FP16_MIXED)
    ):
        return False
    if choice.layerwise and choice.precision in (Precision.BF16_MASTER, Precision.FP16_MIXED):
        return False
    mixed = choice.precision in (Precision.BF16_MIXED, Precision.FP16_MIXED)
    return sharded or not (choice.framework is Framework.FSDP2 and mixed)


def _settings(name: OptimizerName, request: ResolvedPlanRequest) -> Iterator[OptimizerSpec]:
    """Ranks of a low-rank method, implementations of AdamW, and one setting of everything else."""
    hidden_size = request.model.hidden_size
    if name in RANKED_OPTIMIZERS and name is not OptimizerName.APOLLO_MINI:
        for rank in dict.fromkeys(request.request.ranks or (None,)):
            yield fill_optimizer(OptimizerSpec(name=name, rank=rank), hidden_size)
    elif name is OptimizerName.ADAMW:
        for implementation in (OptimizerImplementation.FOREACH, OptimizerImplementation.FUSED):
            yield OptimizerSpec(name=name, implementation=implementation)
    else:
        yield fill_optimizer(OptimizerSpec(name=name), hidden_size)


def _placements(name: OptimizerName, num_gpus: int) -> list[tuple[Placement, bool]]:
    """Placements an optimizer can run on, with and without a layer-wise update."""
    if name in FORWARD_ONLY_OPTIMIZERS:
        return []
    if num_gpus == 1:
        impossible = {False: IN_BACKWARD_OPTIMIZERS, True: WHOLE_STEP_OPTIMIZERS}
        return [
            (Placement.SINGLE, layerwise) for layerwise in impossible if name not in impossible[layerwise]
        ]
    if name in IN_BACKWARD_OPTIMIZERS | ONE_LAYER_OPTIMIZERS:
        return []
    found = [(Placement.DDP, False), (Placement.DDP_BUCKET_VIEW, False)]
    # Methods that take whole matrices have no published code that runs on shards.
    return found if name in WHOLE_MATRIX_OPTIMIZERS else [*found, (Placement.FSDP, False)]


def batch_points(request: ResolvedPlanRequest) -> list[BatchPoint]:
    """Micro-batch sizes with and without checkpointing.

    Powers of two without accumulation; with a global batch size every micro-batch that divides a rank's share, the
    rest being accumulated.
    """
    total = request.request.global_batch_size
    if total is None:
        sizes = [(2**j, 1) for j in range(LARGEST_MICRO_BATCH.bit_length())]
    else:
        share = total // request.hardware.num_gpus
        sizes = [(b, share // b) for b in range(1, min(share, LARGEST_MICRO_BATCH) + 1) if share % b == 0]
    return [
        BatchPoint(size, accum, checkpointing)
        for checkpointing in (ActivationCheckpointing.NONE, ActivationCheckpointing.FULL)
        for size, accum in sizes
    ]


def run_of(request: ResolvedPlanRequest, stack: dict[str, str], choice: Choice, point: BatchPoint) -> RunSpec:
    """The full spec of one configuration."""
    asked, num_gpus = request.request, request.hardware.num_gpus
    parallelism: dict[str, Any] = {"dp_replicate_degree": num_gpus}
    if choice.placement is Placement.FSDP:
        parallelism = {"dp_replicate_degree": 1, "dp_shard_degree": num_gpus, "zero_stage": 3}
    return RunSpec(
        model=request.model.name if isinstance(asked.model, str) else asked.model,
        training=choice.training(request.seq_len, point),
        parallelism=ParallelismSpec(
            **parallelism, gradient_as_bucket_view=choice.placement is Placement.DDP_BUCKET_VIEW
        ),
        hardware=request.hardware,
        stack=stack,
    )
