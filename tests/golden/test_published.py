"""Estimates against memory figures that others published."""

import pytest

from tests.golden.published_runs import PublishedCase, allocated_gb, load_cases


@pytest.mark.parametrize("case", load_cases(), ids=lambda case: case.id)
def test_published_case_holds(case: PublishedCase) -> None:
    assert case.failures(case.estimate()) == []


def test_larger_quantisation_blocks_have_fewer_scales() -> None:
    small, large = (c for c in load_cases() if c.id.startswith("galore-7b-8bit"))

    assert allocated_gb(large.estimate()) < allocated_gb(small.estimate())
