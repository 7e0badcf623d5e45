"""Scratch formulas: arrays as numbers, thresholds, and the few values that are known by heart."""

import numpy as np
import pytest

from whatfits.estimator.profile import with_derived_symbols
from whatfits.estimator.profile.scratch import (
    UNSORTED_IDS,
    flash_splits,
    radix_sort_scratch,
    reduction_scratch,
)

DIMS = {"b": 2, "s": 2048, "a": 16, "k": 4, "d": 128, "h": 2048, "V": 32000}
ONE_BY_ONE = (
    "splits",
    "efficient16",
    "efficient32",
    "cudnn",
    "sort_scratch",
    "pieces",
    "sum_h",
    "sum_h_flags",
    "sum_kd",
)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_arrays_give_the_same_as_numbers(name: str) -> None:
    batches, lengths = np.array([1, 2, 3, 8]), np.array([100, 1000, 1500, 4096])

    together = with_derived_symbols({**DIMS, "b": batches, "s": lengths})[name]
    assert together.tolist() == [
        with_derived_symbols({**DIMS, "b": b, "s": s})[name]
        for b, s in zip(batches.tolist(), lengths.tolist(), strict=True)
    ]


def test_numbers_give_plain_integers() -> None:
    derived = with_derived_symbols(DIMS)

    assert all(type(derived[name]) is int for name in ONE_BY_ONE)


def test_the_embeddings_backward_sorts_above_a_threshold() -> None:
    names = ("sort", "sorted", "segments", "pieces", "sort_scratch", "unique_scratch", "segment_scratch")
    below, above = (with_derived_symbols({**DIMS, "b": 1, "s": UNSORTED_IDS + more}) for more in (0, 1))

    assert [below[n] for n in names] == [0] * 7
    assert [above[n] for n in names] == [1, 3073, 3073, 3073 + 307, 67583, 1279, 1279]


def test_one_block_sorts_what_it_can_hold() -> None:
    assert radix_sort_scratch(np.array([1, 2304, 2305]), 8, 8).tolist()[:2] == [1, 1]
    assert radix_sort_scratch(2305, 8, 8) > 2 * 8 * 2305


@pytest.mark.parametrize(("sms", "blocks"), [(132, 9), (108, 7)])
def test_staging_fills_the_gpu_it_runs_on(sms: int, blocks: int) -> None:
    """32,768 rows of 2,048 columns: 16 groups of 128, each on as many blocks as bring 16 blocks to every multiprocessor."""
    staging, flags = reduction_scratch(2048, 32768, vector=4, sms=sms)

    slots = sms * 16
    assert flags == 4 * 16
    assert staging == 4 * 2048 * 128 * -(-slots // 16)
    assert -(-slots // 16) // 16 + 1 >= blocks


def test_symbols_may_name_the_gpu() -> None:
    default, smaller = (
        with_derived_symbols({**DIMS, "s": 16384, **gpu})["sum_h"] for gpu in ({}, {"sms": 108})
    )

    assert default == 4 * 2048 * 128 * 132
    assert smaller == 4 * 2048 * 128 * 108


@pytest.mark.parametrize(
    ("batch", "heads", "seq_len", "head_dim", "splits"),
    [(2, 8, 500, 64, 2), (1, 8, 300, 80, 3), (1, 16, 640, 72, 3), (2, 8, 256, 64, 0), (4, 8, 1000, 64, 0)],
)
def test_flash_splits_the_keys_of_few_queries(
    batch: int, heads: int, seq_len: int, head_dim: int, splits: int
) -> None:
    """As recorded on an H100 (benchmarks/gpu_recordings, sdpa)."""
    assert flash_splits(batch, heads, seq_len, head_dim) == splits
