"""Fit byte sizes seen at several points to exact expressions in the symbols.

`SizeFitter`, for classes whose dims are symbols: an integer times one monomial.
Two expressions that agree on all points are told apart by choosing points with unrelated odd dims; a size that no
single monomial explains is tried as a sum of two (a padded label tensor is 8 b s + 8 b).

`ConfigSizeFitter`, for one config, whose dims are numbers: integers times one or two products of batch and sequence
lengths, these also rounded up; else three of them, the square of a length and a constant (a mask over a text and an
image). Scratch is fitted argument by argument of the formula it is computed by.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.profile.expressions import DERIVED_SIZES, SizeExpression, with_derived_symbols
from whatfits.estimator.profile.formulas import call_symbol
from whatfits.estimator.profile.scratch import output_vector

__all__ = ["ConfigSizeFitter", "Fitter", "SizeFitError", "SizeFitter"]

Monomial = tuple[tuple[str, int], ...]


class SizeFitError(ValueError):
    """A size that no expression of the searched form explains exactly."""


class Fitter(Protocol):
    """Finds the expression of a size from what it is at each point."""

    def fit(self, sizes: Sequence[int]) -> SizeExpression:
        """Of plain sizes, one per point."""
        ...

    def fit_token(self, sizes: Sequence[int], formulas: Sequence[tuple[Any, ...]]) -> SizeExpression:
        """Of an allocation's bytes, with the formula the tracer computed each by, if any."""
        ...


def _monomials(symbols: Sequence[str]) -> list[Monomial]:
    """Candidates in order of simplicity: batch and sequence powers times up to three distinct dims."""
    dims = [x for x in symbols if x in "hiakdVr"]
    batch_powers = [0, 1] if "b" in symbols else [0]
    found: list[Monomial] = []
    for count in range(4):
        for chosen in combinations(dims, count):
            for b in batch_powers:
                found.extend(_monomial([("b", b), ("s", s), *((x, 1) for x in chosen)]) for s in (0, 1, 2))
    products = [
        ("a", "s128"),
        ("a", "s128", "d32"),
        ("splits", "a", "s"),
        ("splits", "a", "s", "d32"),
        ("a", "s32"),
        ("a", "s", "d_wide"),
        ("s", "s8"),
        ("a", "s", "s8"),
    ]
    for b in batch_powers:
        found += [_monomial([("b", b), *((x, 1) for x in product)]) for product in products]
    found += [_monomial([("sort", 1)]), _monomial([("pieces", 1), ("h32", 1)])]
    derived = [_monomial([(name, 1)]) for name in DERIVED_SIZES]
    return [*derived, *sorted(found, key=_simplicity), *_of_class(symbols, batch_powers)]


def _of_class(symbols: Sequence[str], batch_powers: Sequence[int]) -> list[Monomial]:
    """Candidates with the symbols that only this class has, which have longer names."""
    own = [x for x in symbols if len(x) > 1]
    factors = [("",), ("V",), ("h",)]
    products = [
        [("b", b), (x, 1), *((y, 1) for y in ys if y)] for x in own for ys in factors for b in batch_powers
    ]
    return sorted((_monomial(p) for p in products), key=_simplicity)


def _simplicity(monomial: Monomial) -> tuple[int, int]:
    return sum(e for _, e in monomial), len(monomial)


def _monomial(powers: list[tuple[str, int]]) -> Monomial:
    return tuple((x, e) for x, e in powers if e)


class _Searches(ABC):
    """Searches the expression of each vector of sizes once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], SizeExpression] = {}

    def fit(self, sizes: Sequence[int]) -> SizeExpression:
        """Expression equal to the sizes at every point.

        Raises:
            SizeFitError: none of the searched form is.
        """
        key = tuple(sizes)
        if key not in self._known:
            self._known[key] = self._search(np.array(sizes, dtype=np.int64))
        return self._known[key]

    @abstractmethod
    def _search(self, sizes: NDArray[np.int64]) -> SizeExpression: ...


class SizeFitter(_Searches):
    """Fits vectors of sizes, one entry per point."""

    def __init__(self, points: Sequence[Mapping[str, int]], symbols: Sequence[str]) -> None:
        self.points = [with_derived_symbols(p) for p in points]
        self.monomials = _monomials(symbols)
        self.values: NDArray[np.int64] = np.array(
            [[SizeExpression(((1, m),)).evaluate(p) for p in self.points] for m in self.monomials],
            dtype=np.int64,
        )
        super().__init__()

    def fit_token(self, sizes: Sequence[int], _formulas: Sequence[tuple[Any, ...]]) -> SizeExpression:
        """Expression of an allocation's bytes; scratch has derived symbols where dims are symbols too."""
        return self.fit(sizes)

    def _search(self, sizes: NDArray[np.int64]) -> SizeExpression:
        single = self._single(sizes)
        if single is not None:
            return single
        low_order = [j for j, m in enumerate(self.monomials) if all(x in ("b", "s") for x, _ in m)]
        for j in low_order:
            for coefficient in (1, 2, 4, 8, 16):
                rest = sizes - coefficient * self.values[j]
                other = self._single(rest) if (rest > 0).all() else None
                if other is not None:
                    return SizeExpression((*other.terms, (coefficient, self.monomials[j])))
        raise SizeFitError(f"no expression explains the sizes {sizes.tolist()} at {self.points}")

    def _single(self, sizes: NDArray[np.int64]) -> SizeExpression | None:
        if not sizes.any():
            return SizeExpression(())
        quotient, remainder = np.divmod(sizes, np.maximum(self.values, 1))
        coefficient = quotient.max(axis=1)
        exact = (remainder == 0) & np.where(self.values > 0, quotient == coefficient[:, None], sizes == 0)
        matches = np.flatnonzero(exact.all(axis=1) & (coefficient > 0))
        if not len(matches):
            return None
        best = int(matches[0])
        return SizeExpression(((int(coefficient[best]), self.monomials[best]),))


class ConfigSizeFitter(_Searches):
    """Fits vectors of sizes of one config, one entry per point."""

    def __init__(self, points: Sequence[Mapping[str, int]], lengths: Sequence[str]) -> None:
        """Set up.

        Args:
            points: batch and sequence lengths.
            lengths: symbols of sequence lengths, plain ones first.
        """
        self.points = [with_derived_symbols(p) for p in points]
        self._plain = plain = [x for x in lengths if len(x) == 1]
        pieces = [x for x in lengths if x.startswith("chunks")]
        products = [(), *((x,) for x in lengths), *product((*plain, *pieces), lengths)]
        unlike = {tuple(sorted(p)): p for p in products}
        self._monomials = [
            _collect([*(["b"] * b), *factors])
            for factors, b in product(unlike.values(), (0, 1, 2))
            if b == 0 or self.points[0]["b"] > 1
        ]
        self._monomials.sort(key=_simplicity)
        self._values: NDArray[np.int64] = np.array(
            [[SizeExpression(((1, m),)).evaluate(p) for p in self.points] for m in self._monomials],
            dtype=np.int64,
        )
        super().__init__()

    def fit_token(self, sizes: Sequence[int], formulas: Sequence[tuple[Any, ...]]) -> SizeExpression:
        """Expression of an allocation's bytes: of the bytes themselves, or a call of the formula behind them.

        Raises:
            SizeFitError: a size, or an argument, has no expression of the searched form.
        """
        name = formulas[0][0] if formulas[0] else ""
        if not name or all(formula == formulas[0] for formula in formulas):
            return self.fit(sizes)
        _require_one_length(formulas)
        arguments = [self.fit([int(x) for x in values]) for values in list(zip(*formulas, strict=True))[1:]]
        return SizeExpression(((1, ((call_symbol(name, arguments), 1),)),))

    def _search(self, sizes: NDArray[np.int64]) -> SizeExpression:
        if not sizes.any():
            return SizeExpression(())
        values = self._values
        exact = (sizes % values == 0) & (sizes // values == (sizes // values)[:, :1])
        for j in np.flatnonzero(exact.all(axis=1)):
            return SizeExpression(((int(sizes[0] // values[j, 0]), self._monomials[j]),))
        for one, two in combinations(range(len(values)), 2):
            found = _two_coefficients(values[one], values[two], sizes)
            if found is not None:
                return SizeExpression(((found[0], self._monomials[one]), (found[1], self._monomials[two])))
        expression = self._square(sizes) or self._vector(sizes)
        if expression is not None:
            return expression
        raise SizeFitError(f"no expression explains the sizes {sizes.tolist()} at {self.points}")

    def _vector(self, sizes: NDArray[np.int64]) -> SizeExpression | None:
        """What a length lets a kernel load at once: the argument of a formula that is 1, 2 or 4."""
        for length in self._plain:
            lengths = self._values[self._monomials.index(((length, 1),))]
            if (output_vector(lengths) == sizes).all():
                call = call_symbol("vector", [SizeExpression(((1, ((length, 1),)),))])
                return SizeExpression(((1, ((call, 1),)),))
        return None

    def _square(self, sizes: NDArray[np.int64]) -> SizeExpression | None:
        """A square n (x + c)^2, for each sequence or once, as a length x squared, the length itself and a number."""
        for length, batches in product(self._plain, ([], ["b"])):
            each = [self._monomials.index(_collect([*batches, *[length] * power])) for power in (2, 1, 0)]
            rows = self._values[each].T
            found = np.rint(np.linalg.lstsq(rows.astype(float), sizes.astype(float), rcond=None)[0])
            x, y, z = (int(n) for n in found)
            if x and y * y == 4 * x * z and (rows @ found.astype(np.int64) == sizes).all():
                return SizeExpression(
                    tuple((n, self._monomials[j]) for n, j in zip((x, y, z), each, strict=True))
                )
        return None


def _require_one_length(formulas: Sequence[tuple[Any, ...]]) -> None:
    """Raise a `SizeFitError` where a formula has more arguments at one point than at another."""
    if len({len(f) for f in formulas}) > 1:
        raise SizeFitError(f"{formulas[0][0]} has other arguments at other points: {formulas}")


def _two_coefficients(
    first: NDArray[np.int64], second: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[int, int] | None:
    """Integers with x first + y second = sizes, from two points at which the two are not proportional."""
    determinants = first[0] * second - second[0] * first
    where = np.flatnonzero(determinants)
    if not len(where):
        return None
    j, k = int(where[0]), int(determinants[where[0]])
    x, rest = divmod(int(sizes[0]) * int(second[j]) - int(second[0]) * int(sizes[j]), k)
    y, other = divmod(int(first[0]) * int(sizes[j]) - int(sizes[0]) * int(first[j]), k)
    if rest or other or not (x * first + y * second == sizes).all():
        return None
    return x, y


def _collect(factors: Sequence[str]) -> Monomial:
    return tuple((x, factors.count(x)) for x in dict.fromkeys(factors))
