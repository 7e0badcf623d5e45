"""Probability and verdict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_gpu, make_hardware
from whatfits.estimator.memory.device import TOTAL_ESTIMATE_ERROR, Interval
from whatfits.estimator.memory.verdict import Usable, combine, fit_probability, usable_memory, verdict_of
from whatfits.estimator.specs import Verdict

LOW, MEDIAN, HIGH = 70.0, 75.0, 83.0


def probability(usable: float, error: float = 0.0) -> float:
    return fit_probability(LOW, MEDIAN, HIGH, Usable(int(usable), error))


def test_the_interval_is_a_90_percent_one() -> None:
    assert [probability(x) for x in (LOW, MEDIAN, HIGH)] == pytest.approx([0.05, 0.5, 0.95])


@given(st.lists(st.integers(0, 200), min_size=2), st.floats(0, 9))
def test_more_memory_never_fits_less(usable: list[int], error: float) -> None:
    found = [probability(x, error) for x in sorted(usable)]

    assert found == sorted(found)
    assert all(0 <= p <= 1 for p in found)


def test_an_uncertain_total_makes_the_answer_less_sure() -> None:
    assert 0.5 < probability(HIGH, 10.0) < probability(HIGH)
    assert probability(LOW) < probability(LOW, 10.0) < 0.5


def test_without_any_spread_it_fits_or_it_does_not() -> None:
    assert [fit_probability(5, 5, 5, Usable(n, 0.0)) for n in (4, 5, 6)] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("p", "verdict"),
    [(1.0, Verdict.YES), (0.95, Verdict.YES), (0.9499, Verdict.UNCERTAIN), (0.0501, Verdict.UNCERTAIN), (0.05, Verdict.NO), (0.0, Verdict.NO)],
)  # fmt: skip
def test_verdicts_change_at_their_limits(p: float, verdict: Verdict) -> None:
    assert verdict_of(p) is verdict


def test_deviations_add_in_squares_on_each_side() -> None:
    low, median, high = combine(
        np.array([100.0]), [np.array([x]) for x in (-3.0, 0.0, 6.0)], Interval(6.0, 10.0, 18.0)
    )

    assert [float(x[0]) for x in (low, median, high)] == pytest.approx([105.0, 110.0, 120.0])


def test_usable_memory_is_the_device_report_and_a_cap_lowers_it() -> None:
    gpu = make_gpu(total_bytes_is_estimate=False)
    assert gpu.total_bytes is not None

    assert usable_memory(gpu, make_hardware()) == Usable(gpu.total_bytes, 0.0)
    assert usable_memory(gpu, make_hardware(memory_cap_bytes=1000)) == Usable(1000, 0.0)
    assert usable_memory(gpu, make_hardware(memory_cap_bytes=10**13)) == Usable(gpu.total_bytes, 0.0)


def test_an_estimated_total_is_less_certain_unless_a_cap_replaces_it() -> None:
    gpu = make_gpu(total_bytes_is_estimate=True)
    assert gpu.total_bytes is not None

    assert usable_memory(gpu, make_hardware()).error == TOTAL_ESTIMATE_ERROR * gpu.total_bytes
    assert usable_memory(gpu, make_hardware(memory_cap_bytes=1000)).error == 0.0
