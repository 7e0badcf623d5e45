"""The optimizers there are: what each is, its default rank, and the program that answers for its memory."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.blockwise_8bit import DEFAULT_BLOCK_SIZE
from whatfits.estimator.memory.optimizers.facts import OptimizerFacts, ProgramSettings, RankRule
from whatfits.estimator.memory.optimizers.facts_elementwise import ELEMENTWISE
from whatfits.estimator.memory.optimizers.facts_factored import BLOCKWISE, FACTORED, IN_BACKWARD
from whatfits.estimator.memory.optimizers.facts_low_rank import LOW_RANK
from whatfits.estimator.memory.optimizers.facts_matrix import MATRIX
from whatfits.estimator.memory.optimizers.facts_quantised import QUANTISED
from whatfits.estimator.memory.optimizers.low_rank import DEFAULT_UPDATE_INTERVAL
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.specs import OptimizerName, OptimizerSpec

__all__ = ["OPTIMIZERS", "OptimizerFacts", "RankRule", "build_optimizer_program", "optimizer_facts"]

_KNOWN = {**ELEMENTWISE, **FACTORED, **IN_BACKWARD, **BLOCKWISE, **QUANTISED, **MATRIX, **LOW_RANK}

OPTIMIZERS: Mapping[str, OptimizerFacts] = MappingProxyType({name: _KNOWN[name] for name in OptimizerName})
"""Every optimizer, in the order of the list of names."""


def optimizer_facts(name: OptimizerName) -> OptimizerFacts:
    """Facts of an optimizer."""
    return OPTIMIZERS[name]


def build_optimizer_program(
    spec: OptimizerSpec, *, param_dtype_bytes: int, hidden_size: int, fp32_embeddings: bool = False
) -> OptimizerProgram:
    """The memory program of an optimizer.

    Args:
        spec: The optimizer and its settings; what it leaves out takes the method's default.
        param_dtype_bytes: Bytes per element of the parameters the optimizer updates.
        hidden_size: The model's, for the default rank.
        fp32_embeddings: Whether `adamw_8bit` keeps 32-bit states of embeddings, as Hugging Face's Trainer has it do.
    """
    rank = spec.rank
    rule = optimizer_facts(spec.name).default_rank
    if rule is not None and rank is None:
        rank = rule.rank(hidden_size)
    settings = ProgramSettings(
        param_dtype_bytes=param_dtype_bytes,
        implementation=spec.implementation,
        rank=rank or 1,
        update_interval=spec.projection_update_interval or DEFAULT_UPDATE_INTERVAL,
        block_size=spec.block_size or DEFAULT_BLOCK_SIZE,
        fp32_embeddings=fp32_embeddings,
    )
    return _build(spec.name, settings)


@lru_cache(maxsize=4096)
def _build(name: OptimizerName, settings: ProgramSettings) -> OptimizerProgram:
    """One program per setting, so that what it has evaluated is not evaluated again."""
    return OPTIMIZERS[name].build(settings)
