"""From what was asked to what is answered: names looked up, defaults filled in, rules checked."""

from dataclasses import dataclass
from typing import Any

from whatfits.estimator.catalog.gpu_text import parse_gpus
from whatfits.estimator.catalog.gpus import resolve_gpu
from whatfits.estimator.catalog.models import resolve_model
from whatfits.estimator.errors import InputError
from whatfits.estimator.memory.optimizers.blockwise_8bit import DEFAULT_BLOCK_SIZE
from whatfits.estimator.memory.optimizers.low_rank import DEFAULT_UPDATE_INTERVAL
from whatfits.estimator.memory.optimizers.registry import optimizer_facts
from whatfits.estimator.specs.enums import ActivationCheckpointing, Method
from whatfits.estimator.specs.hardware import GpuSpec, HardwareSpec
from whatfits.estimator.specs.layerwise import IN_BACKWARD_OPTIMIZERS
from whatfits.estimator.specs.low_rank import QUANTISED_OPTIMIZERS
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.parallelism import ParallelismSpec
from whatfits.estimator.specs.plan import PlanRequest
from whatfits.estimator.specs.rules import ADAPTER_TARGETS, ALL_LINEAR, assumptions_of, check_run
from whatfits.estimator.specs.run import RunSpec
from whatfits.estimator.specs.training import DEFAULT_SEQ_LEN, AdapterSpec, OptimizerSpec, TrainingSpec

__all__ = [
    "ResolvedPlanRequest",
    "ResolvedRun",
    "default_seq_len",
    "fill_adapter",
    "fill_optimizer",
    "resolve_plan_request",
    "resolve_run",
]


DEFAULT_CHECKPOINTING_POLICY = "ops"
"""torchtitan's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """A valid run with everything filled in."""

    run: RunSpec
    model: ModelSpec
    gpu: GpuSpec
    assumptions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPlanRequest:
    """A valid plan request with everything filled in."""

    request: PlanRequest
    model: ModelSpec
    gpu: GpuSpec
    hardware: HardwareSpec
    seq_len: int
    assumptions: tuple[str, ...]


def resolve_run(run: RunSpec) -> ResolvedRun:
    """The run with names looked up, defaults filled in and every rule checked.

    Raises:
        InputError: A name is unknown or a rule is broken. Whether the run is modelled yet is for `require_supported`.
    """
    model, model_notes = resolve_model(run.model)
    hardware, gpu, gpu_notes = _fill_hardware(run.hardware)
    parallelism, parallelism_notes = _fill_parallelism(run.parallelism, hardware.num_gpus)
    resolved = run.model_copy(
        update={
            "model": model.name if isinstance(run.model, str) else run.model,
            "training": _fill_training(run.training, model),
            "parallelism": parallelism,
            "hardware": hardware,
        }
    )
    check_run(resolved, model, gpu)
    notes = (*model_notes, *gpu_notes, *parallelism_notes, *assumptions_of(resolved, model, gpu))
    return ResolvedRun(run=resolved, model=model, gpu=gpu, assumptions=notes)


def resolve_plan_request(request: PlanRequest) -> ResolvedPlanRequest:
    """The request with names looked up, defaults filled in and every rule checked.

    Raises:
        InputError: A name is unknown or a rule is broken.
    """
    model, model_notes = resolve_model(request.model)
    if isinstance(request.hardware, str):
        short, notes = parse_gpus(request.hardware, field="hardware")
        hardware, gpu, _ = _fill_hardware(short)
        gpu_notes = tuple(notes)
    else:
        hardware, gpu, gpu_notes = _fill_hardware(request.hardware)
    seq_len = request.seq_len or default_seq_len(model)
    for rank in request.ranks or ():
        if rank > model.hidden_size:
            reason = f"rank {rank} is above hidden_size {model.hidden_size}"
            raise InputError("ranks", rank, f"1 to {model.hidden_size}", reason=reason)
    batch = request.global_batch_size
    if batch is not None and batch % hardware.num_gpus:
        reason = f"global_batch_size {batch} does not divide over {hardware.num_gpus} data-parallel GPUs"
        raise InputError("global_batch_size", batch, f"a multiple of {hardware.num_gpus}", reason=reason)
    probe = RunSpec(
        model=request.model,
        training=TrainingSpec(seq_len=seq_len),
        parallelism=ParallelismSpec(dp_replicate_degree=hardware.num_gpus),
        hardware=hardware,
    )
    check_run(probe, model, gpu)
    return ResolvedPlanRequest(
        request=request.model_copy(update={"hardware": hardware, "seq_len": seq_len}),
        model=model,
        gpu=gpu,
        hardware=hardware,
        seq_len=seq_len,
        assumptions=(*model_notes, *gpu_notes, *assumptions_of(probe, model, gpu)),
    )


def fill_optimizer(optimizer: OptimizerSpec, hidden_size: int) -> OptimizerSpec:
    """The optimizer with the defaults of its method: rank, projection interval, quantisation block."""
    changes: dict[str, Any] = {}
    rule = optimizer_facts(optimizer.name).default_rank
    if rule is not None:
        changes["rank"] = optimizer.rank or rule.rank(hidden_size)
        changes["projection_update_interval"] = (
            optimizer.projection_update_interval or DEFAULT_UPDATE_INTERVAL
        )
    if optimizer.name in QUANTISED_OPTIMIZERS:
        changes["block_size"] = optimizer.block_size or DEFAULT_BLOCK_SIZE
    return optimizer.model_copy(update=changes)


def fill_adapter(method: Method, adapter: AdapterSpec | None) -> AdapterSpec | None:
    """The adapter with its targets spelled out; as it is for full training.

    Source: QLoRA, arXiv:2305.14314 section 4, adapts every linear layer; LoRA, arXiv:2106.09685 section 4.2, the
    attention's matrices.
    """
    if method is Method.FULL:
        return adapter
    adapter = adapter or AdapterSpec()
    default = ADAPTER_TARGETS if method is Method.QLORA else ADAPTER_TARGETS[:4]
    targets = adapter.targets or default
    if targets == (ALL_LINEAR,):
        targets = ADAPTER_TARGETS
    return adapter.model_copy(update={"targets": targets})


def _fill_training(training: TrainingSpec, model: ModelSpec) -> TrainingSpec:
    changes: dict[str, Any] = {
        "optimizer": fill_optimizer(training.optimizer, model.hidden_size),
        "adapter": fill_adapter(training.method, training.adapter),
    }
    selective = training.activation_checkpointing is ActivationCheckpointing.SELECTIVE
    if selective and training.checkpointing_policy is None:
        changes["checkpointing_policy"] = DEFAULT_CHECKPOINTING_POLICY
    if "layerwise_update" not in training.model_fields_set:
        changes["layerwise_update"] = training.optimizer.name in IN_BACKWARD_OPTIMIZERS
    if "seq_len" not in training.model_fields_set:
        changes["seq_len"] = default_seq_len(model)
    return training.model_copy(update=changes)


def default_seq_len(model: ModelSpec) -> int:
    """2048 tokens, or as many as the model has positions for; 1 of a model that takes none."""
    if not model.takes_tokens:
        return 1
    return min(DEFAULT_SEQ_LEN, model.max_position_embeddings or DEFAULT_SEQ_LEN)


def _fill_hardware(hardware: HardwareSpec) -> tuple[HardwareSpec, GpuSpec, tuple[str, ...]]:
    gpu, notes = resolve_gpu(hardware.gpu)
    changes: dict[str, Any] = {"gpu": gpu.id}
    if "gpus_per_node" not in hardware.model_fields_set:
        changes["gpus_per_node"] = min(hardware.gpus_per_node, hardware.num_gpus)
    return hardware.model_copy(update=changes), gpu, notes


def _fill_parallelism(axes: ParallelismSpec, num_gpus: int) -> tuple[ParallelismSpec, tuple[str, ...]]:
    """Give the GPUs that no stated degree uses to data parallelism; a remainder is left for the rules to refuse."""
    given = axes.model_fields_set
    changes: dict[str, Any] = {}
    notes = []
    if "zero_stage" not in given and axes.dp_shard_degree > 1:
        changes["zero_stage"] = 3
        notes.append(f"dp_shard_degree {axes.dp_shard_degree} is read as full sharding (zero_stage 3).")
    if "dp_replicate_degree" not in given and num_gpus % axes.world_size == 0 and num_gpus > axes.world_size:
        left = num_gpus // axes.world_size
        sharded = axes.zero_stage > 0 and "dp_shard_degree" not in given
        changes["dp_shard_degree" if sharded else "dp_replicate_degree"] = left
        share = "shards" if sharded else "full copies (DDP)"
        notes.append(f"The {left} data-parallel ranks hold {share}, as no other placement was asked for.")
    return axes.model_copy(update=changes), tuple(notes)
