"""What an optimizer keeps and allocates on the device: the types every optimizer program shares.

A program answers for the parameters of one rank (local shapes after sharding). Persistent state is listed tensor by
tensor; a call of ``step()`` is an ordered list of allocations and frees.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Literal, NamedTuple, Protocol

__all__ = [
    "GRADIENT",
    "OptimizerEvent",
    "OptimizerProgram",
    "ParameterRole",
    "ParameterTensor",
    "StateTensor",
    "StepPhase",
    "StepWork",
]


GRADIENT = "gradient"
"""First part of the key under which an update frees the gradient itself: ``(GRADIENT, parameter.name)``."""


class ParameterRole(StrEnum):
    """What a parameter is to the model; low-rank methods project `linear` only."""

    linear = "linear"
    embedding = "embedding"
    head = "head"
    vector = "vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterTensor:
    """One trainable parameter as this rank holds it."""

    name: str
    shape: tuple[int, ...]
    role: ParameterRole

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTensor:
    """One persistent tensor of optimizer state; `nbytes` is its storage, unrounded."""

    name: str
    nbytes: int
    on_device: bool = True
    """Whether torch's caching allocator holds it on the device."""
    is_managed: bool = False
    """Whether the driver moves it between device and host, page by page."""


class OptimizerEvent(NamedTuple):
    """One device allocation or free inside ``step()``.

    Persistent state has the key ``(parameter.name, state_name)``, or ``("optimizer", state_name)`` when the
    parameters share it; a temporary has ``("tmp", n)``. While a state tensor is being replaced (projection refresh)
    two blocks live under its key: a free releases the older one. `number_blocks` applies that rule. A method that
    drops the gradient before its update is done frees ``(GRADIENT, parameter.name)``, which the backward pass made.
    """

    kind: Literal["alloc", "free"]
    key: Hashable
    nbytes: int
    label: str


class StepPhase(StrEnum):
    """Which kind of step: the one that creates the state, an ordinary one, or one that refreshes projections."""

    first = "first"
    steady = "steady"
    refresh = "refresh"


class StepWork(NamedTuple):
    """Work of one optimizer step, for time estimates.

    `flops` counts the matrix products of a steady step, `bytes_moved` its device-memory traffic. `svd_work` is the sum
    of m n min(m, n) over the matrices decomposed at a refresh (0 without SVD), which happens once every
    `refresh_interval` steps (None for methods without refresh).
    """

    flops: int
    bytes_moved: int
    svd_work: int
    refresh_interval: int | None


class OptimizerProgram(Protocol):
    """The memory behaviour of one optimizer with its hyper-parameters."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Persistent state of one parameter after its first step."""
        ...

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """Persistent state held once for all parameters."""
        ...

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        """What ``step()`` allocates and frees on the device, in order, parameters in the order given."""
        ...

    def state_bytes(self, parameters: Sequence[ParameterTensor]) -> int:
        """Device bytes of all persistent state, each tensor rounded up to the allocator's 512."""
        ...

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step above what was there before it, each tensor rounded up to 512.

        In the first phase the state the step creates counts too.
        """
        ...

    def update_transient_bytes(self, parameter: ParameterTensor, phase: StepPhase) -> int:
        """`transient_bytes` of a parameter with an optimizer of its own (layer-wise update)."""
        ...

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        """Work of a steady step, and of the refresh it repeats."""
        ...
