"""The search: what is asked for a budget, and the ranked answer."""

from typing import Annotated, Literal

from pydantic import Field

from whatfits.estimator.specs.base import BY_SHAPE, LIST, OBJECT, TEXT, ModelReference, PositiveInt, Spec
from whatfits.estimator.specs.enums import Framework, Method, Objective, OptimizerName, Precision
from whatfits.estimator.specs.estimate import Estimate
from whatfits.estimator.specs.hardware import HardwareSpec
from whatfits.estimator.specs.run import RunSpec

__all__ = ["DEFAULT_LIMIT", "Candidate", "Plan", "PlanRequest", "Rejection"]

DEFAULT_LIMIT = 20
"""Candidates a plan returns when nothing is said."""


class PlanRequest(Spec):
    """What to search over."""

    model: ModelReference
    """A catalog name, or the content of a Hugging Face config.json."""
    hardware: Annotated[Annotated[HardwareSpec, OBJECT] | Annotated[str, TEXT], BY_SHAPE]
    """The GPUs, or the short form such as "8xa100-80gb"."""
    seq_len: PositiveInt | None = None
    """Tokens per sequence; 2048, or the model's maximum if that is shorter, when left out."""
    global_batch_size: PositiveInt | None = None
    """Sequences per optimizer step over all GPUs; free when left out."""
    optimizers: Annotated[
        Annotated[tuple[OptimizerName, ...], Field(min_length=1), LIST] | Annotated[Literal["all"], TEXT],
        BY_SHAPE,
    ] = "all"
    """Optimizers to try."""
    ranks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Ranks to try for low-rank methods; each method's own choice when left out."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = (Method.FULL,)
    """Training methods to try."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = (Precision.BF16,)
    """Precisions to try."""
    frameworks: Annotated[tuple[Framework, ...], Field(min_length=1)] = (Framework.PYTORCH,)
    """Frameworks to try."""
    objective: Objective = Objective.THROUGHPUT
    """What to rank by."""
    limit: Annotated[int, Field(ge=1, le=1000, strict=True)] = DEFAULT_LIMIT
    """Candidates to return; the best of every fitting optimizer and placement is kept."""


class Candidate(Spec):
    """A run that fits, or may."""

    spec: RunSpec
    """The run with everything filled in."""
    estimate: Estimate
    """Its estimate."""
    pareto: bool
    """Whether no other candidate is at least as good in both speed and memory and better in one."""
    reasons: tuple[str, ...] = ()
    """Why it stands where it does, one sentence each."""


class Rejection(Spec):
    """An optimizer and placement of which nothing fits."""

    optimizer: OptimizerName
    """The optimizer."""
    rank: int | None = None
    """Its rank, for low-rank methods."""
    placement: str
    """How it was spread over the GPUs."""
    why: str
    """The reason, in one sentence."""
    smallest_change_that_fits: str | None = None
    """The smallest change that fits, in one sentence; null where none was found."""


class Plan(Spec):
    """The ranked answer."""

    candidates: tuple[Candidate, ...]
    """What fits, best first."""
    rejected: tuple[Rejection, ...]
    """What does not."""
    searched: int
    """Configurations evaluated."""
    elapsed_seconds: float
    """Time the search took."""
    assumptions: tuple[str, ...] = ()
    """What was assumed for all of them, one sentence each."""
