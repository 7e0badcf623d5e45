"""The count table: what is live at every event of a micro-batch, as counts of size expressions.

peak = max over rows of sum over columns of count x size. A column is (kind, size expression); a count is affine in
the number of layers. Rows come from the event program's prefix, its body's first and last repetition and its suffix:
in between, counts are linear in the repetition, so no other repetition can be the maximum for non-negative sizes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from whatfits.estimator.profile.expand import ExpandedEvents, expand_structure
from whatfits.estimator.profile.program import (
    PARTS,
    EventProgram,
    IntArray,
    Label,
    ProfileHead,
    Token,
)

__all__ = ["COLUMN_KINDS", "CountTable", "build_table"]

COLUMN_KINDS = ("activations", "logits_and_loss", "temporaries", "gradients_pending", "gradients_kept")
"""A gradient is pending from its allocation until it is complete, kept from then on."""

_PENDING, _KEPT = COLUMN_KINDS.index("gradients_pending"), COLUMN_KINDS.index("gradients_kept")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountTable(ProfileHead):
    """Rows of live counts for one structure class, pruned to those that can be a maximum.

    first_layers: smallest depth the table answers. base and slope: (rows, kinds, sizes) counts at first_layers and
    per further period of layers. row_label: index into labels. row_parameter: template whose gradient became complete at this
    row, -1 elsewhere. step_base, step_slope: (kinds, sizes) live when backward has ended and the optimizer steps.
    """

    first_layers: int
    base: IntArray
    slope: IntArray
    row_label: IntArray
    row_parameter: IntArray
    step_base: IntArray
    step_slope: IntArray

    def counts(self, num_layers: int) -> IntArray:
        """(rows, kinds, sizes) counts at a depth.

        Raises:
            ValueError: fewer layers than the table covers, or a broken period.
        """
        return _counts(self, self.num_periods(num_layers, self.first_layers))

    def step_counts(self, num_layers: int) -> IntArray:
        """(kinds, sizes) counts live while the optimizer steps."""
        periods = self.num_periods(num_layers, self.first_layers)
        result: IntArray = self.step_base + periods * self.step_slope
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain data for storage; counts sparse as (row, kind, size, base, slope), each row less the one before."""
        return {
            **self.head_to_json(),
            "first_layers": self.first_layers,
            "row_label": self.row_label.tolist(),
            "row_parameter": self.row_parameter.tolist(),
            "counts": _sparse(_changes(self.base), _changes(self.slope)),
            "step": _sparse(self.step_base, self.step_slope),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "CountTable":
        """Inverse of `to_json`.

        Raises:
            ValueError: the format is not the one this version reads.
        """
        head = cls.head_from_json(data)
        shape = (len(data["row_label"]), len(COLUMN_KINDS), len(data["sizes"]))
        base, slope = _dense(data["counts"], shape)
        step_base, step_slope = _dense(data["step"], shape[1:])
        return cls(
            **head,
            first_layers=data["first_layers"],
            base=base.cumsum(axis=0),
            slope=slope.cumsum(axis=0),
            row_label=np.array(data["row_label"], dtype=np.int64),
            row_parameter=np.array(data["row_parameter"], dtype=np.int64),
            step_base=step_base,
            step_slope=step_slope,
        )


@lru_cache(maxsize=256)
def _counts(table: CountTable, periods: int) -> IntArray:
    result: IntArray = table.base + periods * table.slope
    return result


def _changes(rows: IntArray) -> IntArray:
    """Each row less the one before: most of what is live stays so."""
    result: IntArray = np.diff(rows, axis=0, prepend=0)
    return result


def _sparse(base: IntArray, slope: IntArray) -> list[list[int]]:
    """Columns of the places where either is not zero, and both values there."""
    index = np.nonzero((base != 0) | (slope != 0))
    return [*(places.tolist() for places in index), base[index].tolist(), slope[index].tolist()]


def _dense(columns: list[list[int]], shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Inverse of `_sparse`."""
    *index, base_values, slope_values = (np.array(c, dtype=np.int64) for c in columns)
    base, slope = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    base[tuple(index)] = base_values
    slope[tuple(index)] = slope_values
    return base, slope


def build_table(program: EventProgram) -> CountTable:
    """Derive the pruned table of an event program.

    Raises:
        ValueError: the counts are not affine in depth, so the program cannot be summarised this way.
    """
    period = program.period
    first = program.base_layers + period
    depths = [first, first + period, first + 2 * period]
    live = [_live_counts(program, expand_structure(program, depth)) for depth in depths]
    rows = [_row_positions(program, repeats) for repeats in (1, 2, 3)]
    kind = expand_structure(program, first).kind[rows[0]]
    # A parameter is updated while its gradient is still pending: its row counts what was live just before.
    before = (kind == Token.GRADIENT_READY).astype(np.int64)
    at = [counts[positions - before] for counts, positions in zip(live, rows, strict=True)]
    slope = at[1] - at[0]
    if not (at[2] - at[1] == slope).all():
        raise ValueError(f"live counts of {program.key.slug} are not affine in depth")
    events = expand_structure(program, first)
    parameter = np.where(kind == Token.GRADIENT_READY, events.label[rows[0]], -1)
    row_label = _label_of_rows(events, rows[0])
    keep = (kind == Token.ALLOC) | (parameter >= 0)
    chosen = np.flatnonzero(keep)
    group = np.array([_region(program.labels[j]) for j in row_label[chosen]], dtype=np.int64)
    kept = chosen[_undominated(at[0][chosen], slope[chosen], group * 1000 + parameter[chosen])]
    steps = [
        counts[expand_structure(program, d).part_ends[1] - 1] for counts, d in zip(live, depths, strict=True)
    ]
    return CountTable(
        key=program.key,
        stack=program.stack,
        first_layers=first,
        sizes=program.sizes,
        labels=program.labels,
        parameters=program.parameters,
        buffers=program.buffers,
        period=period,
        base=at[0][kept],
        slope=slope[kept],
        row_label=row_label[kept],
        row_parameter=parameter[kept],
        step_base=steps[0],
        step_slope=steps[1] - steps[0],
    )


def _region(label: Label) -> int:
    """Parts of a step that a placement may add different constants to; a row is only pruned by rows of its own part."""
    return 2 * ("layers." in label.module) + (label.phase == "backward")


def _live_counts(program: EventProgram, events: ExpandedEvents) -> IntArray:
    """(events, kinds, sizes): blocks live after each event."""
    delta = np.zeros((len(events.kind), len(COLUMN_KINDS), len(program.sizes)), dtype=np.int64)
    category = [
        COLUMN_KINDS.index(x.category) if x.category != "gradients" else _PENDING for x in program.labels
    ]
    current: dict[int, int] = {}
    for j, (kind, block, size) in enumerate(zip(events.kind, events.block, events.size_index, strict=True)):
        if kind == Token.ALLOC:
            current[block] = category[events.label[j]]
            delta[j, current[block], size] += 1
        elif kind == Token.FREE:
            delta[j, current.pop(block), size] -= 1
        elif kind == Token.GRADIENT_READY and block >= 0 and current[block] == _PENDING:
            delta[j, _PENDING, size] -= 1
            delta[j, _KEPT, size] += 1
            current[block] = _KEPT
    result: IntArray = delta.cumsum(axis=0)
    return result


def _row_positions(program: EventProgram, repeats: int) -> IntArray:
    """Event positions of prefix, first body, last body and suffix of every part, at a depth."""
    positions: list[IntArray] = []
    start = 0
    for name in PARTS:
        part = program.parts[name]
        prefix, body, suffix = len(part.prefix), len(part.body), len(part.suffix)
        positions += [
            start + np.arange(prefix),
            start + prefix + np.arange(body),
            start + prefix + (repeats - 1) * body + np.arange(body),
            start + prefix + repeats * body + np.arange(suffix),
        ]
        start += prefix + repeats * body + suffix
    return np.concatenate(positions).astype(np.int64)


def _label_of_rows(events: ExpandedEvents, positions: IntArray) -> IntArray:
    """Label of each row: its own allocation's, or the latest allocation's before it."""
    latest = np.where(events.kind == Token.ALLOC, np.arange(len(events.kind)), 0)
    result: IntArray = events.label[np.maximum.accumulate(latest)[positions]]
    return result


def _undominated(base: IntArray, slope: IntArray, group: IntArray) -> IntArray:
    """Indices of rows that no other row of the same group bounds in every column at every depth."""
    flat = np.concatenate([base.reshape(len(base), -1), slope.reshape(len(slope), -1)], axis=1)
    _, unique = np.unique(np.concatenate([flat, group[:, None]], axis=1), axis=0, return_index=True)
    kept: list[int] = []
    for value in np.unique(group):
        members = np.sort(unique[group[unique] == value])
        order = members[np.argsort(-flat[members].sum(axis=1), kind="stable")]
        survivors: list[int] = []
        for j in order:
            if not survivors or not (flat[survivors] >= flat[j]).all(axis=1).any():
                survivors.append(int(j))
        kept += survivors
    return np.sort(np.array(kept, dtype=np.int64))
