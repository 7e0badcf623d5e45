"""What a person choosing an optimizer should know of it, and how its program is made."""

from collections.abc import Callable
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.specs import OptimizerImplementation

__all__ = ["PUBLISHED_OR_OWN", "TORCH_IMPLEMENTATIONS", "OptimizerFacts", "ProgramSettings", "RankRule"]

TORCH_IMPLEMENTATIONS = (
    OptimizerImplementation.FOR_LOOP,
    OptimizerImplementation.FOREACH,
    OptimizerImplementation.FUSED,
)
"""The ways in which `torch.optim` walks over parameters."""
PUBLISHED_OR_OWN = (OptimizerImplementation.FOREACH, OptimizerImplementation.WHATFITS)
"""The published code, or that of `whatfits.optim_impls`: for the names in `specs.own_code.OWN_CODE_OPTIMIZERS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRule:
    """Default rank of a low-rank method."""

    rank: Callable[[int], int]
    """Rank for a hidden size."""
    text: str
    """The rule in words, with its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """What programs are made from; each takes what its method knows."""

    param_dtype_bytes: int
    implementation: OptimizerImplementation
    rank: int
    update_interval: int
    block_size: int
    fp32_embeddings: bool

    @property
    def is_own_code(self) -> bool:
        """Whether `whatfits.optim_impls` steps, not the published code."""
        return self.implementation is OptimizerImplementation.WHATFITS


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """What a person choosing an optimizer should know."""

    title: str
    summary: str
    """What it saves, in one sentence."""
    paper: str
    source: str
    """The code whose memory behaviour is modelled."""
    build: Callable[[ProgramSettings], OptimizerProgram]
    """Makes the program that answers for its memory."""
    default_rank: RankRule | None = None
    """None for methods without a rank."""
    implementations: tuple[OptimizerImplementation, ...] = ()
    """Choices of `OptimizerSpec.implementation`; empty where there is one way only."""
    has_block_size: bool = False
    in_lists: bool = False
    """Whether its kernels take lists of parameters, where there is one implementation only."""
    layerwise_only: bool = False
    """Whether the method updates each parameter inside the backward pass, so that there is no other way."""
    layerwise_possible: bool = True
    """Whether each parameter can be updated as soon as its gradient is there."""
    can_accumulate: bool = True
    """Whether gradients can be accumulated over micro-batches (never with a layer-wise update)."""
    can_clip: bool = True
    """Whether the global gradient norm can be clipped (never with a layer-wise update)."""

    @property
    def has_rank(self) -> bool:
        """Whether the method projects gradients to a low rank."""
        return self.default_rank is not None
