"""Sizes of one config's model get one exact expression in batch and sequence lengths, or an error."""

from collections.abc import Callable
from math import gcd

import pytest

from tests.profiler.trace.tiny_configs import tiny_config
from whatfits.estimator.profile.expressions import with_derived_symbols
from whatfits.estimator.profile.formulas import FORMULAS
from whatfits.profiler.trace.config_classes import config_class
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.sizes import ConfigSizeFitter, SizeFitError

TEXT = tiny_config("t5")
STRUCTURE = config_class(StepOptions(config=TEXT), describe(TEXT), {"b": 2, "s": 64})
POINTS = STRUCTURE.points
FITTER = ConfigSizeFitter(POINTS, STRUCTURE.symbols)
UNSEEN = {"b": 11, "s": 1032, "t": 344}
Size = Callable[[dict[str, int]], int]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("constant", lambda _p: 4096),
        ("hidden states", lambda p: 128 * p["b"] * p["s"]),
        ("a decoder's", lambda p: 128 * p["b"] * p["t"]),
        ("cross attention", lambda p: 8 * p["b"] * p["s"] * p["t"]),
        ("a mask", lambda p: 2 * p["b"] * p["s"] ** 2),
        ("batches squared", lambda p: 4 * p["b"] ** 2),
        ("a class token", lambda p: 128 * p["b"] * p["s"] + 128 * p["b"]),
        ("two streams", lambda p: 64 * p["b"] * p["s"] + 32 * p["b"] * p["t"]),
        ("less than a product", lambda p: 8 * p["b"] * p["s"] - 8 * p["b"]),
        ("a mask over an image too", lambda p: (p["s"] + 197) ** 2),
        ("a mask between tokens", lambda p: 2 * p["b"] * (p["s"] - 1) ** 2),
    ],
)
def test_a_size_is_found_again_where_it_was_not_seen(text: str, size: Size) -> None:
    expression = FITTER.fit([size(p) for p in POINTS])

    assert expression.evaluate(with_derived_symbols(UNSEEN)) == size(UNSEEN), text


def test_scratch_is_a_call_with_its_arguments_fitted() -> None:
    formulas = [("sort_scratch", 4 * p["b"] * p["s"], 8, 9) for p in POINTS]

    expression = FITTER.fit_token([0] * len(POINTS), formulas)

    assert str(expression) == "1 sort_scratch(4 b s;8;9)"
    expected = FORMULAS["sort_scratch"]({}, 4 * UNSEEN["b"] * UNSEEN["s"], 8, 9)
    assert expression.evaluate(with_derived_symbols(UNSEEN)) == expected


def test_a_call_with_equal_arguments_everywhere_is_a_plain_size() -> None:
    formulas = [("sort_scratch", 5000, 8, 9)] * len(POINTS)

    assert str(FITTER.fit_token([512] * len(POINTS), formulas)) == "512"


def test_what_a_length_lets_a_kernel_load_at_once_is_a_call() -> None:
    structure = config_class(StepOptions(config=TEXT), describe(TEXT), {"b": 2, "s": 63})
    formulas = [("staging", 64, 4 * p["b"], 0, 0, 4, gcd(4, p["t"])) for p in structure.points]

    expression = structure.make_fitter().fit_token([0] * len(structure.points), formulas)

    assert str(expression) == "1 staging(64;4 b;0;0;4;1 vector(1 t))"


def test_another_call_with_more_arguments_at_one_point_is_refused() -> None:
    formulas = [("sort_scratch", p["b"], 8, *([9] if p["b"] > 2 else [])) for p in POINTS]

    with pytest.raises(SizeFitError, match="sort_scratch has other arguments"):
        FITTER.fit_token([0] * len(POINTS), formulas)


def test_a_size_without_expression_is_refused() -> None:
    with pytest.raises(SizeFitError, match="no expression explains"):
        FITTER.fit([p["b"] * p["s"] ** 3 + 7 for p in POINTS])
