"""The parameters of one rank, with what every program asks about them computed once."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from whatfits.estimator.memory.optimizers.program import ParameterRole, ParameterTensor

__all__ = ["ParameterKind", "Parameters", "is_linear_matrix", "is_query_or_key"]

QUERY_AND_KEY = ("q_proj", "k_proj")
"""Names of the modules that Adam-mini treats head by head, unlike others of their shape and role."""

_KIND_NUMBERS: dict[tuple[tuple[int, ...], ParameterRole, bool], int] = {}
"""One number per shape, role and whether it is a query's or key's met so far, the same in every program."""


class ParameterKind(NamedTuple):
    """Parameters of equal shape and role, queries and keys apart from others."""

    number: int
    example: ParameterTensor
    occurrences: int


class Parameters(tuple[ParameterTensor, ...]):  # noqa: SLOT001 (cached properties need a dict)
    """Parameters in the order in which the optimizer has them.

    A program takes any sequence; asked about the same parameters many times, as a search does, it answers several times
    faster for one of these.
    """

    @classmethod
    def of(cls, parameters: Iterable[ParameterTensor]) -> "Parameters":
        """The parameters as they are, if they are of this type already."""
        return parameters if isinstance(parameters, Parameters) else cls(parameters)

    @cached_property
    def kind_numbers(self) -> tuple[int, ...]:
        """The number of each parameter's kind."""
        return tuple(_kind_number(parameter) for parameter in self)

    @cached_property
    def matrices_last(self) -> "Parameters":
        """The same, linear layers' weights after everything else."""
        return Parameters(sorted(self, key=is_linear_matrix))

    @cached_property
    def kinds(self) -> Sequence[ParameterKind]:
        """The kinds there are, in order of first appearance."""
        examples: dict[int, ParameterTensor] = {}
        counts: dict[int, int] = {}
        for number, parameter in zip(self.kind_numbers, self, strict=True):
            examples.setdefault(number, parameter)
            counts[number] = counts.get(number, 0) + 1
        return tuple(ParameterKind(number, examples[number], count) for number, count in counts.items())


def is_linear_matrix(parameter: ParameterTensor) -> bool:
    """Whether a parameter is the two-dimensional weight of a linear layer inside the model."""
    return parameter.role is ParameterRole.linear and len(parameter.shape) == 2


def is_query_or_key(parameter: ParameterTensor) -> bool:
    """Whether a parameter is a query's or key's weight, by its name."""
    return len(parameter.shape) == 2 and any(name in parameter.name for name in QUERY_AND_KEY)


def _kind_number(parameter: ParameterTensor) -> int:
    key = (parameter.shape, parameter.role, is_query_or_key(parameter))
    return _KIND_NUMBERS.setdefault(key, len(_KIND_NUMBERS))
