"""What a method declares of itself: which parameters get what, the state it keeps, what a step allocates.

The contract test (tests/contract/test_optimizers.py) holds a declaration, the estimator's program and the bytes of a
real step to be the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Any, Protocol

import torch

__all__ = ["Capabilities", "Declaration", "Hyper", "Parameter", "Phase", "Role", "StateTensor"]

Hyper = Mapping[str, Any]
"""Hyper-parameters by name, complete with their defaults; each method knows the types of its own."""


class Role(StrEnum):
    """What a parameter is to the model. Low-rank and whole-matrix methods treat `matrix` in their own way."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    HEAD = "head"
    VECTOR = "vector"


class Phase(StrEnum):
    """Which kind of step: the one that makes the state, an ordinary one, one that refreshes a projection or a choice."""

    FIRST = "first"
    STEADY = "steady"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One trainable parameter, as far as its bytes depend on it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One persistent tensor of a parameter's state, or of all parameters together."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a method can be combined with; each refusal has a reason for the person who asks."""

    layerwise: bool = True
    """Each parameter can be updated as soon as its gradient is there."""
    whole_step: bool = True
    """All parameters can be updated by one ``step()``; not so where the method lives inside the backward pass."""
    accumulates: bool = True
    """Gradients can be summed over micro-batches."""
    clips: bool = True
    """The global norm of the gradients can be clipped before the step."""
    shards: frozenset[str] = frozenset({"ddp"})
    """Among ddp, fsdp2 (the update is elementwise, so that a rank can update its shard)."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why not, by the name of the field above."""


class Declaration(Protocol):
    """A method's bytes, as functions of a parameter and the hyper-parameters."""

    def treatment(self, role: Role) -> str:
        """What parameters of a role get: `projected`, `adamw`, `8-bit adamw`, `frozen`, ..."""
        ...

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """State tensors of one parameter after its first step."""
        ...

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """State tensors that all parameters share."""
        ...

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """Peak of what the update of one parameter holds beside state, gradient and parameter; state made in it not counted."""
        ...

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Steps from refresh to refresh, or None where nothing is refreshed."""
        ...
