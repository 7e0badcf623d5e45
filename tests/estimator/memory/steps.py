"""Steps of small models, put together for the tests of composition, timeline and peaks."""

import numpy as np
from numpy.typing import ArrayLike

from tests.factories import make_gpu, make_model
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.memory.compose import (
    PARAM_DTYPE_BYTES,
    OptimizerOnRank,
    RankTensors,
    StepMemory,
    StepPeaks,
)
from whatfits.estimator.memory.optimizers import OPTIMIZERS, build_optimizer_program
from whatfits.estimator.memory.peak import FloatArray, rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.timeline import Timeline, build_timeline
from whatfits.estimator.profile import load_program, load_table
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    ModelSpec,
    OptimizerImplementation,
    OptimizerName,
    OptimizerSpec,
    Precision,
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
) -> StepMemory:
    """A step on one A100; by default AdamW on a small model on one rank."""
    model = model or make_model(**SMALL)
    key = profile_key(
        model,
        precision=Precision.BF16,
        checkpointing=ActivationCheckpointing(checkpointing),
        micro_batch_size=micro_batch_size,
    )
    table = load_table(key)
    tensors = RankTensors(model, table.parameters, table.buffers, placement, shard_degree)
    program = build_optimizer_program(
        optimizer or OptimizerSpec(), param_dtype_bytes=PARAM_DTYPE_BYTES, hidden_size=model.hidden_size
    )
    return StepMemory(
        table=table, optimizer=OptimizerOnRank(tensors, program, layerwise=layerwise), gpu=make_gpu()
    )


def sizes_of(step: StepMemory, micro_batch_size: ArrayLike = 2, seq_len: int = 130) -> FloatArray:
    """One configuration's sizes."""
    return rounded_sizes(
        step.table, {**step.tensors.model.dims, "b": np.asarray(micro_batch_size), "s": seq_len}
    )


def peaks_of(
    step: StepMemory, *, micro_batch_size: int = 2, seq_len: int = 130, grad_accum_steps: int = 1
) -> StepPeaks:
    """Peak of one configuration."""
    return step.peaks(sizes_of(step, micro_batch_size, seq_len), accumulated=np.array([grad_accum_steps > 1]))


def timeline_of(
    step: StepMemory, *, micro_batch_size: int = 2, seq_len: int = 130, grad_accum_steps: int = 1
) -> Timeline:
    """The step's events."""
    return build_timeline(
        step,
        load_program(step.table.key),
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        grad_accum_steps=grad_accum_steps,
    )
