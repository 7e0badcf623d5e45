"""Sizes as exact polynomials in the symbols of a model and a micro-batch.

Symbols: b micro-batch size, s sequence length, L layers, h hidden size, i intermediate size, a attention heads,
k key-value heads, d head dim, V vocabulary; derived: s128 = s rounded up to 128, d32 = d rounded up to 32 (to 64
above 128), the paddings of the flash kernel's scratch tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SizeExpression", "with_derived_symbols"]


@dataclass(frozen=True, slots=True)
class SizeExpression:
    """A sum of terms, each an integer times a monomial: ((coefficient, ((symbol, exponent), ...)), ...)."""

    terms: tuple[tuple[int, tuple[tuple[str, int], ...]], ...]

    def evaluate(self, symbols: Mapping[str, Any]) -> Any:
        """Value for the given symbols: an int, or an integer array where symbols are arrays."""
        total: Any = 0
        for coefficient, monomial in self.terms:
            value: Any = coefficient
            for symbol, exponent in monomial:
                value = value * symbols[symbol] ** exponent
            total = total + value
        return total

    def __str__(self) -> str:
        """Readable form, such as `4 b s h + 8 b`."""
        if not self.terms:
            return "0"
        return " + ".join(
            " ".join([str(c), *(x if e == 1 else f"{x}^{e}" for x, e in monomial)])
            for c, monomial in self.terms
        )

    def to_json(self) -> list[Any]:
        """Plain lists for storage."""
        return [[c, [[x, e] for x, e in monomial]] for c, monomial in self.terms]

    @classmethod
    def from_json(cls, data: list[Any]) -> "SizeExpression":
        """Inverse of `to_json`."""
        return cls(tuple((c, tuple((x, e) for x, e in monomial)) for c, monomial in data))


def with_derived_symbols(symbols: Mapping[str, Any]) -> dict[str, Any]:
    """Add s128 and d32 to the symbols they derive from. Works on ints and integer arrays."""
    derived = dict(symbols)
    if "s" in symbols:
        derived["s128"] = -(-symbols["s"] // 128) * 128
    if "d" in symbols:
        multiple = 32 if symbols["d"] <= 128 else 64
        derived["d32"] = -(-symbols["d"] // multiple) * multiple
    return derived
