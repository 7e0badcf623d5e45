"""Steps of small models, put together for the tests of composition, timeline and peaks."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.factories import make_gpu, make_model, make_training
from whatfits.estimator.memory.classes import profile_key, rank_tensors, table_of
from whatfits.estimator.memory.compose import StepMemory, StepPeaks
from whatfits.estimator.memory.loop import loop_of
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.memory.peak import FloatArray, rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.memory.timeline import Timeline, build_timeline
from whatfits.estimator.profile import EventProgram, load_program
from whatfits.estimator.specs import (
    GpuSpec,
    ModelSpec,
    OptimizerImplementation,
    OptimizerName,
    OptimizerSpec,
)

__all__ = ["ALL_OPTIMIZERS", "SMALL", "make_step", "peaks_of", "sizes_of", "timeline_of"]

SMALL = {"num_hidden_layers": 5, "hidden_size": 96, "intermediate_size": 296, "vocab_size": 701}
"""A model in which no two tensors are of equal size by accident."""

ALL_OPTIMIZERS = tuple(
    OptimizerSpec(name=name, implementation=implementation, rank=16 if OPTIMIZERS[name].has_rank else None)
    for name in map(OptimizerName, OPTIMIZERS)
    for implementation in (OPTIMIZERS[name].implementations or (OptimizerImplementation.FOREACH,))
)


def make_step(
    model: ModelSpec | None = None,
    *,
    optimizer: OptimizerSpec | None = None,
    micro_batch_size: int = 2,
    checkpointing: str = "none",
    placement: Placement = Placement.SINGLE,
    shard_degree: int = 1,
    layerwise: bool = False,
    gpu: GpuSpec | None = None,
    **training: Any,
) -> StepMemory:
    """A step, on an A100 unless another GPU is given; by default AdamW on a small model on one rank. `training` are further fields of its spec."""
    model = model or make_model(**SMALL)
    spec = make_training(
        optimizer=optimizer or OptimizerSpec(),
        micro_batch_size=micro_batch_size,
        activation_checkpointing=checkpointing,
        layerwise_update=layerwise,
        **training,
    )
    table = table_of(profile_key(model, spec), None, spec)
    tensors = rank_tensors(model, table, spec, placement, shard_degree)
    on_rank = OptimizerOnRank.build(tensors, spec.optimizer, layerwise=layerwise, loop=loop_of(spec))
    return StepMemory(table=table, optimizer=on_rank, gpu=gpu or make_gpu())


def sizes_of(step: StepMemory, micro_batch_size: ArrayLike = 2, seq_len: int = 130) -> FloatArray:
    """One configuration's sizes."""
    return rounded_sizes(step.table, step.symbols(np.asarray(micro_batch_size), seq_len))


def peaks_of(
    step: StepMemory, *, micro_batch_size: int = 2, seq_len: int = 130, grad_accum_steps: int = 1
) -> StepPeaks:
    """Peak of one configuration."""
    return step.peaks(sizes_of(step, micro_batch_size, seq_len), accumulated=np.array([grad_accum_steps > 1]))


def timeline_of(
    step: StepMemory,
    *,
    micro_batch_size: int = 2,
    seq_len: int = 130,
    grad_accum_steps: int = 1,
    program: EventProgram | None = None,
) -> Timeline:
    """The step's events."""
    return build_timeline(
        step,
        program or load_program(step.table.key),
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        grad_accum_steps=grad_accum_steps,
    )
