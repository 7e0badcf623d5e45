"""Units: parsing, rounding and what a reader sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.errors import InputError
from whatfits.estimator.units import (
    format_bytes,
    format_count,
    format_seconds,
    parse_bytes,
    round_allocation,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GiB", 85_899_345_920),
        ("80 GB", 80_000_000_000),
        ("1.5 KiB", 1536),
        ("512", 512),
        (7, 7),
        ("2tib", 2**41),
    ],
)
def test_parse_bytes_tells_binary_from_decimal(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "80G", "GiB", "-2 GB", -1, "1e9", "80 gigs", True])
def test_parse_bytes_refuses_what_is_not_decidable(text: int | str) -> None:
    with pytest.raises(InputError, match=r"^hardware\.memory_cap_bytes: ") as caught:
        parse_bytes(text, field="hardware.memory_cap_bytes")
    assert caught.value.value == text


@given(st.integers(0, 2**50))
def test_an_allocation_is_the_next_multiple_of_512(n: int) -> None:
    rounded = round_allocation(n)
    assert rounded % 512 == 0
    assert n <= rounded < n + 512


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_allocations_come_in_steps_of_512(n: int, expected: int) -> None:
    assert round_allocation(n) == expected


@pytest.mark.parametrize(
    ("n", "expected"),
    [(80_905_502_720, "75.35 GiB"), (512, "512 B"), (1536, "1.50 KiB"), (-(2**30), "-1.00 GiB"), (0, "0 B")],
)
def test_bytes_for_a_reader(n: int, expected: str) -> None:
    assert format_bytes(n) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.000012, "12 us"), (0.0123, "12.3 ms"), (1.25, "1.25 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")],
)
def test_durations_for_a_reader(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(13_015_864_320, "13.0 B"), (58_073_600, "58.1 M"), (950, "950"), (4_096, "4.1 K")]
)
def test_counts_for_a_reader(n: int, expected: str) -> None:
    assert format_count(n) == expected
