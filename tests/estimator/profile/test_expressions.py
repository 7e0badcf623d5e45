"""Size expressions: exact integers, arrays alike, and readable."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.profile import SizeExpression, with_derived_symbols
from whatfits.estimator.profile.scratch import flash_splits

PADDED_LABELS = SizeExpression(((8, (("b", 1), ("s", 1))), (8, (("b", 1),))))

monomials = st.lists(
    st.tuples(st.sampled_from("bshiakdV"), st.integers(1, 3)), max_size=4, unique_by=lambda power: power[0]
).map(tuple)
expressions = st.lists(st.tuples(st.integers(1, 64), monomials), max_size=3).map(
    lambda terms: SizeExpression(tuple(terms))
)


def test_value_of_a_sum() -> None:
    assert PADDED_LABELS.evaluate({"b": 3, "s": 5}) == 8 * 15 + 24


def test_large_values_stay_exact() -> None:
    cube = SizeExpression(((3, (("s", 3),)),))

    assert cube.evaluate({"s": 1_000_003}) == 3 * 1_000_003**3


def test_arrays_give_the_same_as_numbers() -> None:
    batches = np.array([1, 2, 7])

    assert PADDED_LABELS.evaluate({"b": batches, "s": 9}).tolist() == [
        PADDED_LABELS.evaluate({"b": b, "s": 9}) for b in batches.tolist()
    ]


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (SizeExpression(()), "0"),
        (PADDED_LABELS, "8 b s + 8 b"),
        (SizeExpression(((2, (("s", 2),)),)), "2 s^2"),
    ],
)
def test_text(expression: SizeExpression, text: str) -> None:
    assert str(expression) == text


@given(expressions)
def test_json_round_trip(expression: SizeExpression) -> None:
    assert SizeExpression.from_json(expression.to_json()) == expression


@pytest.mark.parametrize(
    ("seq_len", "head_dim", "s128", "d32"),
    [(1, 8, 128, 32), (128, 32, 128, 32), (129, 33, 256, 64), (4096, 128, 4096, 128), (5, 129, 128, 192)],
)
def test_derived_symbols(seq_len: int, head_dim: int, s128: int, d32: int) -> None:
    derived = with_derived_symbols({"s": seq_len, "d": head_dim})

    assert (derived["s128"], derived["d32"]) == (s128, d32)


def test_derived_symbols_of_arrays_and_of_nothing() -> None:
    assert with_derived_symbols({"s": np.array([1, 300])})["s128"].tolist() == [128, 384]
    assert with_derived_symbols({"h": 5}) == {"h": 5}


@given(
    batch=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    seq_len=st.integers(1, 20_000),
    heads=st.integers(1, 64),
    head_dim=st.sampled_from([32, 64, 128, 256]),
    sms=st.integers(20, 200),
)
def test_splits_of_many_configurations_are_those_of_each(
    batch: list[int], seq_len: int, heads: int, head_dim: int, sms: int
) -> None:
    symbols = {"b": np.array(batch), "s": seq_len, "a": heads, "d": head_dim, "sms": sms}

    together = with_derived_symbols(symbols)["splits"]

    assert together.tolist() == [flash_splits(b, heads, seq_len, head_dim, sms) for b in batch]


def test_a_call_within_a_call_is_read_as_it_is_printed() -> None:
    text = "1 padded(8 b padded(1 s;16;1);512;1) + 2 b^2 sorted(1 s^2;8)"

    expression = SizeExpression.parse(text)

    assert str(expression) == text
    assert expression.evaluate(with_derived_symbols({"b": 3, "s": 100})) == 3072 + 2 * 9 * 80000
