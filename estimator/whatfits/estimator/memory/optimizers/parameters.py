"""The parameters of one rank, with what every program asks about them computed once."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from whatfits.estimator.memory.optimizers.program import ParameterRole, ParameterTensor

__all__ = ["ParameterKind", "Parameters"]

_KIND_NUMBERS: dict[tuple[tuple[int, ...], ParameterRole], int] = {}
"""One number per shape and role met so far, the same in every program."""


class ParameterKind(NamedTuple):
    """Parameters of equal shape and role."""

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
    def kinds(self) -> Sequence[ParameterKind]:
        """The kinds there are, in order of first appearance."""
        examples: dict[int, ParameterTensor] = {}
        counts: dict[int, int] = {}
        for number, parameter in zip(self.kind_numbers, self, strict=True):
            examples.setdefault(number, parameter)
            counts[number] = counts.get(number, 0) + 1
        return tuple(ParameterKind(number, examples[number], count) for number, count in counts.items())


def _kind_number(parameter: ParameterTensor) -> int:
    return _KIND_NUMBERS.setdefault((parameter.shape, parameter.role), len(_KIND_NUMBERS))
