"""A size seen at several points gets one exact expression, or an error."""

from fractions import Fraction
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.profile.expressions import SizeExpression, with_derived_symbols
from whatfits.profiler.trace.classes import shipped_structures, structure_class
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.sizes import SizeFitError, SizeFitter

STRUCTURE = structure_class(StepOptions(), micro_batch="many", kv_heads="grouped")
FITTER = SizeFitter(STRUCTURE.points, STRUCTURE.symbols)
POINTS = [with_derived_symbols(point) for point in STRUCTURE.points]
UNSEEN = with_derived_symbols(
    {"b": 11, "s": 1029, "h": 1234, "i": 4321, "a": 13, "k": 7, "d": 104, "V": 7919}
)


@given(
    coefficient=st.sampled_from([1, 2, 4, 8, 16]),
    powers=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    dims=st.sets(st.sampled_from("hiakdV"), max_size=3),
)
def test_a_monomial_is_found_again(coefficient: int, powers: tuple[int, int], dims: set[str]) -> None:
    def size(point: dict[str, int]) -> int:
        value: int = coefficient * point["b"] ** powers[0] * point["s"] ** powers[1]
        for symbol in dims:
            value *= point[symbol]
        return value

    assert FITTER.fit([size(p) for p in POINTS]).evaluate(UNSEEN) == size(UNSEEN)


def test_a_padded_label_tensor_is_a_sum_of_two() -> None:
    expression = FITTER.fit([8 * p["b"] * p["s"] + 8 * p["b"] for p in POINTS])

    assert expression.evaluate(UNSEEN) == 8 * 11 * 1029 + 8 * 11


def test_the_kernels_padded_scratch_is_found() -> None:
    expression = FITTER.fit([4 * p["b"] * p["a"] * p["s128"] * p["d32"] for p in POINTS])

    assert expression.evaluate(UNSEEN) == 4 * 11 * 13 * 1152 * 128


def test_a_size_without_expression_is_refused() -> None:
    with pytest.raises(SizeFitError, match="no expression explains"):
        FITTER.fit([p["b"] * p["s"] ** 3 + 7 * p["h"] ** 2 for p in POINTS])


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("sort_scratch", 1),
        ("sorted", 8),
        ("pieces", 8),
        ("segment_scratch", 1),
        ("sum_h", 1),
        ("sum_h_flags", 1),
        ("cudnn", 1),
    ],
)
def test_the_scratch_of_a_kernel_is_found_by_its_derived_symbol(name: str, factor: int) -> None:
    """Also where it is 0 at some of the points."""
    expression = FITTER.fit([factor * p[name] for p in POINTS])

    for unseen in (UNSEEN, with_derived_symbols({**UNSEEN, "s": 64})):
        assert expression.evaluate(unseen) == factor * unseen[name]


def test_nothing_anywhere_is_the_empty_sum() -> None:
    assert FITTER.fit([0] * len(POINTS)).terms == ()


def test_expressions_that_agree_on_every_point_of_a_class_agree_everywhere() -> None:
    dims = {"h": 1560, "i": 4321, "a": 12, "k": 4, "d": 104, "V": 7919, "r": 8}
    unseen = [{**dims, "b": b, "s": s} for b, s in ((9, 1032), (3, 200), (17, 4104), (2, 16))]
    for structure in {str(s.points): s for s in shipped_structures()}.values():
        batch_one = structure.key.micro_batch == "one"
        heads = {"one": 1, "grouped": 4, "full": 12}[structure.key.kv_heads]
        more = [{**p, "k": heads, "b": 1 if batch_one else p["b"]} for p in unseen]
        fitter = SizeFitter(structure.points, structure.symbols)
        seen: dict[tuple[int, ...], list[int]] = {}
        for number, row in enumerate(fitter.values.tolist()):
            if any(row):
                divisor = gcd(*row)
                seen.setdefault(tuple(x // divisor for x in row), []).append(number)
        for first, *others in seen.values():
            for other in others:
                ratio = Fraction(max(fitter.values[other].tolist()), max(fitter.values[first].tolist()))
                one, two = (SizeExpression(((1, fitter.monomials[j]),)) for j in (first, other))
                for point in map(with_derived_symbols, more):
                    assert two.evaluate(point) == one.evaluate(point) * ratio, (
                        structure.key.slug,
                        str(one),
                        str(two),
                    )


def test_every_piece_of_scratch_is_there_at_some_points_and_absent_at_others() -> None:
    for structure in {str(s.points): s for s in shipped_structures()}.values():
        points = [with_derived_symbols(p) for p in structure.points]
        for name in (
            "sort",
            "sorted",
            "segments",
            "pieces",
            "sort_scratch",
            "sum_h",
            "sum_h_flags",
            "splits",
        ):
            present = sum(p[name] > 0 for p in points)
            assert 2 <= present < len(points), (structure.key.slug, name)
