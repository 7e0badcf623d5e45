"""Many runs to measure, as the axes they differ in."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

from whatfits.estimator.specs.base import ModelReference, PositiveInt, Spec
from whatfits.estimator.specs.enums import ActivationCheckpointing, OptimizerName, Precision
from whatfits.estimator.specs.low_rank import RANKED_OPTIMIZERS
from whatfits.estimator.specs.measurement import MeasureRequest
from whatfits.estimator.specs.run import RunSpec

__all__ = ["CampaignMatrix", "with_changes"]

_OF_ONE_RANK = frozenset({OptimizerName.APOLLO_MINI, OptimizerName.Q_APOLLO_MINI})
"""Rank 1 is what they are."""


class CampaignMatrix(Spec):
    """Every combination of what is listed; an axis that is left out stays as the base has it."""

    base: MeasureRequest
    """What all runs have in common."""
    models: tuple[ModelReference, ...] = ()
    """Models, by name or config."""
    optimizers: tuple[OptimizerName, ...] = ()
    """Optimizers; each has its method's defaults."""
    ranks: tuple[PositiveInt, ...] = ()
    """Ranks, for the optimizers that have a choice."""
    micro_batch_sizes: tuple[PositiveInt, ...] = ()
    """Sequences in a forward pass."""
    seq_lens: tuple[PositiveInt, ...] = ()
    """Tokens in a sequence."""
    precisions: tuple[Precision, ...] = ()
    """Precisions."""
    activation_checkpointings: tuple[ActivationCheckpointing, ...] = ()
    """Kinds of activation checkpointing."""

    @property
    def num_points(self) -> int:
        """Combinations, without making them."""
        return math.prod(len(axis) for axis in self._axes())

    @property
    def varies_ranks(self) -> bool:
        """Whether some optimizer takes the listed ranks."""
        return any("rank" in changes["optimizer"] for changes in self._optimizer_axis() if changes)

    def points(self) -> Iterator[dict[str, Any]]:  # Any: values of unlike fields
        """What each combination changes of the base, the last axis first to change."""
        return map(_merged, product(*self._axes()))

    def requests(self) -> tuple[MeasureRequest, ...]:
        """One request per combination; whether each can run is for whoever resolves it.

        Raises:
            ValidationError: a combination is not accepted.
        """
        return tuple(with_changes(self.base, **changes) for changes in self.points())

    def _axes(self) -> tuple[list[dict[str, Any]], ...]:  # Any: as above
        return (
            _axis("model", self.models),
            self._optimizer_axis(),
            _axis("micro_batch_size", self.micro_batch_sizes),
            _axis("seq_len", self.seq_lens),
            _axis("precision", self.precisions),
            _axis("activation_checkpointing", self.activation_checkpointings),
        )

    def _optimizer_axis(self) -> list[dict[str, Any]]:  # Any: values of unlike fields
        if not self.optimizers and not self.ranks:
            return [{}]
        named: list[dict[str, Any]] = [{"name": name} for name in self.optimizers]
        if not named:
            named = [self.base.spec.training.optimizer.model_dump(exclude_unset=True)]
        ranked = [
            [{**optimizer, "rank": rank} for rank in self.ranks]
            if self.ranks and optimizer.get("name") in RANKED_OPTIMIZERS - _OF_ONE_RANK
            else [optimizer]
            for optimizer in named
        ]
        return [{"optimizer": optimizer} for group in ranked for optimizer in group]


def with_changes(request: MeasureRequest, **changes: Any) -> MeasureRequest:
    """The request with another model or other fields of its training, through validation.

    Raises:
        ValidationError: a change is not accepted.
    """
    run = request.spec.model_dump(exclude_unset=True)
    if "model" in changes:
        run["model"] = changes.pop("model")
    run["training"] = {**run.get("training", {}), **changes}
    return request.model_copy(update={"spec": RunSpec.model_validate(run)})


# Any: values of unlike fields.
def _axis(name: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [{name: value} for value in values] or [{}]


def _merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
