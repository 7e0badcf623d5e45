"""Optimizer programs: exact state bytes, and what ``step()`` allocates and frees, method by method."""

from whatfits.estimator.memory.optimizers.apollo import Apollo
from whatfits.estimator.memory.optimizers.blockwise_8bit import AdamW8bit
from whatfits.estimator.memory.optimizers.frame import NumberedEvent, number_blocks
from whatfits.estimator.memory.optimizers.galore import GaLoreAdamW, GaLoreAdamW8bit
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import (
    GRADIENT,
    OptimizerEvent,
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.registry import (
    OPTIMIZERS,
    OptimizerFacts,
    RankRule,
    build_optimizer_program,
    optimizer_facts,
)
from whatfits.estimator.memory.optimizers.torch_optim import AdamWForeach, AdamWForLoop, AdamWFused, Sgd

__all__ = [
    "GRADIENT",
    "OPTIMIZERS",
    "AdamW8bit",
    "AdamWForLoop",
    "AdamWForeach",
    "AdamWFused",
    "Apollo",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "NumberedEvent",
    "OptimizerEvent",
    "OptimizerFacts",
    "OptimizerProgram",
    "ParameterRole",
    "ParameterTensor",
    "Parameters",
    "RankRule",
    "Sgd",
    "StateTensor",
    "StepPhase",
    "StepWork",
    "build_optimizer_program",
    "number_blocks",
    "optimizer_facts",
]
