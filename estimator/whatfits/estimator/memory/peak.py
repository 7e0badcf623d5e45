"""Peaks of many configurations from one count table, vectorised.

    peak = resting + max(micro-batch rows, optimizer step)

Rows are pruned once more per depth and gradient treatment: what can be a maximum when the columns are already summed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.placement import FsdpBuffers
from whatfits.estimator.profile import COLUMN_KINDS, CountTable, with_derived_symbols
from whatfits.estimator.units import round_allocation

__all__ = [
    "Gradients",
    "MicroBatchPeak",
    "live_during_step",
    "micro_batch_peak",
    "rounded_sizes",
    "row_region",
]

FloatArray = NDArray[np.float64]

_CHUNK = 4096
_PENDING, _KEPT = COLUMN_KINDS.index("gradients_pending"), COLUMN_KINDS.index("gradients_kept")


class Gradients(StrEnum):
    """What happens to a gradient once it is complete."""

    KEPT = "kept"
    """It stays until the optimizer has stepped."""
    ACCUMULATED = "accumulated"
    """It is added to the one that the first micro-batch left."""
    RELEASED = "released"
    """It is used or moved, and freed, before backward goes on."""
    SHARDED = "sharded"
    """It stays as one rank's shard."""


@dataclass(frozen=True, slots=True)
class MicroBatchPeak:
    """Largest row of each configuration, in bytes, and the row in the table."""

    nbytes: FloatArray
    row: NDArray[np.int64]


def rounded_sizes(table: CountTable, symbols: Mapping[str, Any]) -> FloatArray:
    """(configurations, sizes) bytes of every size expression, rounded up to the allocator's 512.

    `symbols` are ints or integer arrays of one length; bytes stay below 2**53, where float64 is exact.
    """
    values = with_derived_symbols(symbols)
    count = max((len(x) for x in values.values() if np.ndim(x)), default=1)
    # One expression after the other lies together in memory: each is written, and read by the product, in one go.
    rounded = np.empty((len(table.sizes), count)).T
    for j, expression in enumerate(table.sizes):
        rounded[:, j] = round_allocation(expression.evaluate(values))
    return rounded


def live_during_step(table: CountTable, num_layers: int, sizes: FloatArray) -> FloatArray:
    """Bytes of one micro-batch other than gradients that live while the optimizer steps: inputs and the loss."""
    counts = table.step_counts(num_layers).copy()
    counts[[_PENDING, _KEPT]] = 0
    result: FloatArray = sizes @ counts.sum(axis=0).astype(np.float64)
    return result


def micro_batch_peak(
    table: CountTable,
    num_layers: int,
    sizes: FloatArray,
    gradients: Gradients,
    *,
    all_gradients: float = 0.0,
    kept_share: float = 1.0,
    update_bytes: NDArray[np.float64] | None = None,
    gathered: FsdpBuffers | None = None,
) -> MicroBatchPeak:
    """Largest row per configuration.

    Args:
        table: the structure class.
        num_layers: depth.
        sizes: (configurations, sizes) bytes, as `rounded_sizes` gives them.
        gradients: treatment of complete gradients. ACCUMULATED is every micro-batch but the first.
        all_gradients: bytes of all gradients, which lie there from the first micro-batch on (ACCUMULATED).
        kept_share: part of a complete gradient that stays (SHARDED).
        update_bytes: per parameter template, what its layer-wise update allocates (RELEASED).
        gathered: full-size tensors FSDP adds to each row, by where the row lies.
    """
    view = _view(table, num_layers, gradients, kept_share)
    added = np.zeros(len(view.row))
    if gathered is not None:
        added = np.array(gathered.by_region, dtype=np.float64)[view.region]
    if gradients is Gradients.ACCUMULATED:
        added = added + all_gradients
    if update_bytes is not None:
        added = added + np.concatenate([update_bytes, [0.0]])[view.parameter]
    best = np.empty(len(sizes))
    row = np.empty(len(sizes), dtype=np.int64)
    for start in range(0, len(sizes), _CHUNK):
        totals = sizes[start : start + _CHUNK] @ view.counts.T
        totals += added
        winner = totals.argmax(axis=1)
        best[start : start + _CHUNK] = totals[np.arange(len(winner)), winner]
        row[start : start + _CHUNK] = view.row[winner]
    return MicroBatchPeak(best, row)


@dataclass(frozen=True, slots=True)
class _View:
    """Rows of a table with the columns summed as one treatment of gradients counts them."""

    counts: FloatArray
    row: NDArray[np.int64]
    parameter: NDArray[np.int64]
    region: NDArray[np.int64]
    """0 outside the layers, 1 in a layer's forward, 2 in its backward."""


@lru_cache(maxsize=512)
def _view(table: CountTable, num_layers: int, gradients: Gradients, kept_share: float) -> _View:
    counts = table.counts(num_layers)
    summed = counts.sum(axis=1).astype(np.float64)
    if gradients in (Gradients.ACCUMULATED, Gradients.RELEASED):
        summed -= counts[:, _KEPT]
    elif gradients is Gradients.SHARDED:
        summed -= counts[:, _KEPT] * (1.0 - kept_share)
    parameter = table.row_parameter if gradients is Gradients.RELEASED else np.full(len(summed), -1)
    region = np.array([row_region(table, j) for j in range(len(summed))], dtype=np.int64)
    kept: list[int] = []
    for group in {(int(p), int(r)) for p, r in zip(parameter, region, strict=True)}:
        members = np.flatnonzero((parameter == group[0]) & (region == group[1]))
        kept += _undominated(summed, members)
    rows = np.sort(np.array(kept, dtype=np.int64))
    return _View(summed[rows], rows, parameter[rows], region[rows])


def row_region(table: CountTable, row: int) -> int:
    """Where a row lies: 0 outside the layers, 1 in a layer's forward, 2 in its backward."""
    label = table.labels[table.row_label[row]]
    if "*" not in label.module:
        return 0
    return 2 if label.phase == "backward" else 1


def _undominated(counts: FloatArray, members: NDArray[np.int64]) -> list[int]:
    """Members that no other member bounds in every column."""
    survivors: list[int] = []
    for j in members[np.argsort(-counts[members].sum(axis=1), kind="stable")]:
        if not survivors or not (counts[survivors] >= counts[j]).all(axis=1).any():
            survivors.append(int(j))
    return survivors
