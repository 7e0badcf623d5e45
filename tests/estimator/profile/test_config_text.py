"""Lengths that behave alike are one class."""

import pytest

from whatfits.estimator.profile import kind_of_lengths


@pytest.mark.parametrize(
    ("lengths", "chunks", "kind"),
    [
        ([64], [], "eights"),
        ([72], [], "odd_eights"),
        ([66], [], "other"),
        ([64, 32], [], "eights"),
        ([64, 72], [], "eights_and_odd_eights"),
        ([72, 64], [], "odd_eights_and_eights"),
        ([512], [256], "eights"),
        ([264], [256], "other"),
        ([257], [256], "other"),
        ([24], [24], "other_chunks_24"),
        ([48], [24], "eights"),
        ([64], [32, 48], "other_chunks_32"),
        ([192], [32, 48], "eights"),
    ],
)
def test_lengths_have_a_kind(lengths: list[int], chunks: list[int], kind: str) -> None:
    assert kind_of_lengths(lengths, chunks) == kind
