"""A size seen at several points gets one exact expression, or an error."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.profile.expressions import with_derived_symbols
from whatfits.profiler.trace.classes import shipped_structures
from whatfits.profiler.trace.sizes import SizeFitError, SizeFitter

(STRUCTURE,) = (
    s
    for s in shipped_structures()
    if s.key.slug.endswith("ckpt_none-loss_standard-mb_many-kv_grouped-untied")
)
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


def test_no_two_expressions_agree_on_every_point_of_any_class() -> None:
    for structure in shipped_structures():
        fitter = SizeFitter(structure.points, structure.symbols)
        for (j, row), (k, other) in product(enumerate(fitter.values.tolist()), repeat=2):
            if j < k and other[0] * row[0] > 0:
                assert [x * other[0] for x in row] != [y * row[0] for y in other], (
                    structure.key.slug,
                    fitter.monomials[j],
                    fitter.monomials[k],
                )
