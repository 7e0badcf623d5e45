"""Shapes of the API that are not specs: lists, optimizer facts without their code, and query parameters."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from whatfits.estimator.catalog.evidence import QualityRow, load_quality, load_trainer_names
from whatfits.estimator.memory.at_7b import cost_at_7b
from whatfits.estimator.memory.optimizers import OptimizerFacts
from whatfits.estimator.specs import GpuSpec, ModelSpec, OptimizerImplementation, OptimizerName
from whatfits.estimator.specs.layerwise import ONE_LAYER_OPTIMIZERS
from whatfits.estimator.specs.low_rank import WHOLE_MATRIX_OPTIMIZERS

__all__ = ["EstimateOptions", "GpuList", "ModelList", "OptimizerEntry", "OptimizerList", "describe_optimizer"]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True)


class EstimateOptions(BaseModel):
    """What is asked about a run besides the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    explain: Annotated[
        bool,
        Field(
            description="Whether to name what is live at the peak, by module and operation, and how memory moves over "
            "the step that it lies in; not under FSDP."
        ),
    ] = False


class ModelList(_Shape):
    """The models of the catalog."""

    items: tuple[ModelSpec, ...]


class GpuList(_Shape):
    """The GPUs of the catalog."""

    items: tuple[GpuSpec, ...]


class CostAt7B(_Shape):
    """What one form of an optimizer costs on LLaMA-7B in bf16."""

    implementation: OptimizerImplementation
    state_bytes: int
    state_bytes_per_parameter: float
    step_bytes: int
    """Peak of temporaries in an ordinary step."""
    refresh_bytes: int
    """The same in a step that refreshes projections."""


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
    constraints: tuple[str, ...]
    """What it cannot be combined with, in words."""
    at_7b: tuple[CostAt7B, ...]
    """Bytes on LLaMA-7B in bf16 with default settings, for the published code and for our own where that differs."""
    trainer_name: str | None
    """``optim=`` of Hugging Face's Trainer, where it has the method."""
    quality: tuple[QualityRow, ...]
    """Published results beside AdamW's in the same table."""


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
        constraints=_constraints(name, facts),
        at_7b=tuple(_cost(OptimizerName(name), form) for form in _forms(facts)),
        trainer_name=load_trainer_names().get(OptimizerName(name)),
        quality=load_quality().get(OptimizerName(name), ()),
    )


def _forms(facts: OptimizerFacts) -> tuple[OptimizerImplementation, ...]:
    """The published code, and ours where it is another."""
    own = OptimizerImplementation.WHATFITS
    published = OptimizerImplementation.FOREACH
    return (published, own) if own in facts.implementations else (published,)


def _cost(name: OptimizerName, implementation: OptimizerImplementation) -> CostAt7B:
    cost = cost_at_7b(name, implementation)
    return CostAt7B(
        implementation=implementation,
        state_bytes=cost.state_bytes,
        state_bytes_per_parameter=round(cost.state_bytes_per_parameter, 4),
        step_bytes=cost.step_bytes,
        refresh_bytes=cost.refresh_bytes,
    )


def _constraints(name: str, facts: OptimizerFacts) -> tuple[str, ...]:
    found = []
    if facts.layerwise_only:
        found.append("only with a layer-wise update, inside the backward pass")
    if not facts.layerwise_possible:
        found.append("no layer-wise update")
    if not facts.can_accumulate:
        found.append("no gradient accumulation")
    if not facts.can_clip:
        found.append("no clipping of the gradients' norm")
    if name in WHOLE_MATRIX_OPTIMIZERS:
        found.append("takes whole matrices: no sharded parameters")
    if name in ONE_LAYER_OPTIMIZERS:
        found.append("one GPU")
    return tuple(found)
