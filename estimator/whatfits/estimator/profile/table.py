"""The count table: what is live at every event of a micro-batch, as counts of size expressions.

peak = max over rows of sum over columns of count x size. A column is (kind, size expression); a count is affine in
the number of layers. Rows come from the event program's prefix, its body's first and last repetition and its suffix:
in between, counts are linear in the repetition, so no other repetition can be the maximum for non-negative sizes.
"""

from collections.abc import Sequence
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

_GROUPS = 1_000_000
"""More than there are parameters."""
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
    depths = [first + j * period for j in range(3 if period else 1)]
    expanded = [expand_structure(program, depth) for depth in depths]
    positions = [_row_positions(program, j + 1) for j in range(len(depths))]
    rows = _rows_that_may_peak(program, expanded[0], positions[0])
    kind = expanded[0].kind[positions[0][rows]]
    # A parameter is updated while its gradient is still pending: its row counts what was live just before.
    before = (kind == Token.GRADIENT_READY).astype(np.int64)
    at = [
        _live_counts(program, events, [*(places[rows] - before), events.part_ends[1] - 1])
        for events, places in zip(expanded, positions, strict=True)
    ]
    slope = at[1] - at[0] if period else np.zeros_like(at[0])
    if period and not (at[2] - at[1] == slope).all():
        raise ValueError(f"live counts of {program.key.slug} are not affine in depth")
    chosen = positions[0][rows]
    parameter = np.where(kind == Token.GRADIENT_READY, expanded[0].label[chosen], -1)
    if not period:
        parameter = _first_alike(program)[parameter]
    row_label = _label_of_rows(expanded[0], chosen)
    group = np.array([_region(program.labels[j]) for j in row_label], dtype=np.int64)
    kept = _undominated(at[0][:-1], slope[:-1], group * _GROUPS + parameter)
    return CountTable(
        key=program.key,
        stack=program.stack,
        first_layers=first,
        sizes=program.sizes,
        labels=program.labels,
        parameters=program.parameters,
        buffers=program.buffers,
        period=period,
        fallback=program.fallback,
        base=at[0][kept],
        slope=slope[kept],
        row_label=row_label[kept],
        row_parameter=parameter[kept],
        step_base=at[0][-1],
        step_slope=slope[-1],
    )


def _rows_that_may_peak(program: EventProgram, events: ExpandedEvents, positions: IntArray) -> IntArray:
    """Rows at a complete gradient, and at allocations that no other of the same region follows at once."""
    kind = events.kind[positions]
    is_alloc = kind == Token.ALLOC
    region = np.array([_region(label) for label in program.labels], dtype=np.int64)
    of_row = np.where(is_alloc, region[np.where(is_alloc, events.label[positions], 0)], -1)
    follows = np.append((positions[1:] == positions[:-1] + 1) & (of_row[1:] == of_row[:-1]), False)
    result: IntArray = np.flatnonzero((is_alloc & ~follows) | (kind == Token.GRADIENT_READY))
    return result


def _first_alike(program: EventProgram) -> IntArray:
    """For each parameter the first that an optimizer treats alike, and -1 for none."""
    first: dict[object, int] = {}
    alike = [
        first.setdefault((p.shape, p.role, p.element_bytes, p.trainable), j)
        for j, p in enumerate(program.parameters)
    ]
    return np.array([*alike, -1], dtype=np.int64)


def _region(label: Label) -> int:
    """Parts of a step that a placement may add different constants to; a row is only pruned by rows of its own part."""
    return 2 * ("*" in label.module) + (label.phase == "backward")


def _live_counts(program: EventProgram, events: ExpandedEvents, positions: Sequence[int]) -> IntArray:
    """(positions, kinds, sizes): blocks live after the events at some positions."""
    live = np.zeros((len(COLUMN_KINDS), len(program.sizes)), dtype=np.int64)
    counts = np.zeros((len(positions), *live.shape), dtype=np.int64)
    wanted: dict[int, list[int]] = {}
    for row, position in enumerate(positions):
        wanted.setdefault(int(position), []).append(row)
    category = [
        COLUMN_KINDS.index(x.category) if x.category != "gradients" else _PENDING for x in program.labels
    ]
    current: dict[int, int] = {}
    tokens = zip(
        *(x.tolist() for x in (events.kind, events.block, events.size_index, events.label)), strict=True
    )
    for j, (kind, block, size, label) in enumerate(tokens):
        if kind == Token.ALLOC:
            current[block] = category[label]
            live[current[block], size] += 1
        elif kind == Token.FREE:
            live[current.pop(block), size] -= 1
        elif kind == Token.GRADIENT_READY and block >= 0 and current[block] == _PENDING:
            live[_PENDING, size] -= 1
            live[_KEPT, size] += 1
            current[block] = _KEPT
        for row in wanted.get(j, ()):
            counts[row] = live
    return counts


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
