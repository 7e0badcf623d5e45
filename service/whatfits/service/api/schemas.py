"""Shapes of the API that are not specs: lists, and optimizer facts without their code."""

from pydantic import BaseModel, ConfigDict

from whatfits.estimator.memory.optimizers import OptimizerFacts
from whatfits.estimator.specs import GpuSpec, ModelSpec, OptimizerImplementation

__all__ = ["GpuList", "ModelList", "OptimizerEntry", "OptimizerList", "describe_optimizer"]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelList(_Shape):
    """The models of the catalog."""

    items: tuple[ModelSpec, ...]


class GpuList(_Shape):
    """The GPUs of the catalog."""

    items: tuple[GpuSpec, ...]


class OptimizerEntry(_Shape):
    """What a person choosing an optimizer should know."""

    name: str
    """The name in a spec."""
    title: str
    """The name as published."""
    summary: str
    """What it saves, in one sentence."""
    paper: str
    source: str
    """The code whose memory behaviour is modelled."""
    has_rank: bool
    default_rank: str | None
    """The rule for the rank when none is given, with its source."""
    implementations: tuple[OptimizerImplementation, ...]
    """Choices of `implementation`; empty where there is one way only."""
    has_block_size: bool
    layerwise_possible: bool
    """Whether each parameter can be updated as soon as its gradient is there."""
    can_accumulate: bool
    can_clip: bool


class OptimizerList(_Shape):
    """The optimizers that have a memory program."""

    items: tuple[OptimizerEntry, ...]


def describe_optimizer(name: str, facts: OptimizerFacts) -> OptimizerEntry:
    """Facts as JSON can carry them: the rank rule in words."""
    return OptimizerEntry(
        name=name,
        title=facts.title,
        summary=facts.summary,
        paper=facts.paper,
        source=facts.source,
        has_rank=facts.has_rank,
        default_rank=facts.default_rank.text if facts.default_rank else None,
        implementations=facts.implementations,
        has_block_size=facts.has_block_size,
        layerwise_possible=facts.layerwise_possible,
        can_accumulate=facts.can_accumulate,
        can_clip=facts.can_clip,
    )
