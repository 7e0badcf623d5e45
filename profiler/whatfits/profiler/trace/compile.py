"""Compile an event program from shallow traces at a few dims.

1. At one point, trace depths L0, L0+p, L0+2p, L0+3p, where layers repeat after p of them (1, but for a checkpointing
   policy that tells layers apart). Longest common prefix and suffix of the token lists of L0 and L0+p overlap; cut in
   the middle of the overlap; the difference is the body, p layers.
2. Each reference of a free to its allocation is affine in (K, k); fit on the depths.
3. At further points, trace depth L0+p only; token for token the structure is the same and the sizes give each
   token's expression.
A class with a single depth is all prefix: its sizes are fitted token by token, and nothing repeats.
Whatever does not follow this pattern raises `StructureError`: such a stack needs a direct trace.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whatfits.estimator.profile.expressions import SizeExpression
from whatfits.estimator.profile.program import (
    PARTS,
    EventProgram,
    IntArray,
    Label,
    ParameterTemplate,
    PartProgram,
    Token,
)
from whatfits.profiler.trace.classes import StructureClass
from whatfits.profiler.trace.events import Alloc, Free, Mark, Trace
from whatfits.profiler.trace.events import Token as TraceToken
from whatfits.profiler.trace.options import Dims
from whatfits.profiler.trace.sizes import Fitter

__all__ = ["StructureError", "Tracer", "compile_program", "flatten", "split_parts"]

Tracer = Callable[[Dims], Trace]
"""Traces a class at some dims: here, or in another process with other libraries."""

_MARKS = {
    "layer_enter": Token.LAYER_ENTER,
    "layer_exit": Token.LAYER_EXIT,
    "gradient_ready": Token.GRADIENT_READY,
}


class StructureError(ValueError):
    """The traces do not follow prefix, body x n, suffix with affine references."""


@dataclass(frozen=True, slots=True)
class FlatToken:
    """A token with everything that must agree between traces of one class; `nbytes` only between equal dims."""

    kind: Token
    label: Label | str
    nbytes: int
    ref: tuple[str, int] | None
    formula: tuple[Any, ...] = ()

    def same_structure(self, other: "FlatToken") -> bool:
        """Equal but for size, arguments of its formula, and reference."""
        return self.kind == other.kind and self.label == other.label and self.formula[:1] == other.formula[:1]

    def matches(self, other: "FlatToken") -> bool:
        """Equal but for reference."""
        return self.same_structure(other) and self.nbytes == other.nbytes


Flat = dict[str, list[FlatToken]]


def flatten(trace: Trace) -> Flat:
    """Token lists with layer numbers removed and references as (part, position)."""
    where: dict[int, tuple[str, int]] = {}
    flat: Flat = {}
    general = layer_star(trace)
    for part, tokens in split_parts(trace).items():
        flat[part] = []
        for position, token in enumerate(tokens):
            if isinstance(token, Alloc):
                where[token.block] = (part, position)
                label = Label(token.op, general(token.module), token.phase, token.category)
                flat[part].append(FlatToken(Token.ALLOC, label, token.nbytes, None, token.formula))
            elif isinstance(token, Free):
                flat[part].append(FlatToken(Token.FREE, "", 0, where[token.block]))
            else:
                ref = where[token.block] if token.block >= 0 else None
                flat[part].append(FlatToken(_MARKS[token.kind], general(token.name), 0, ref))
    return flat


def layer_star(trace: Trace) -> Callable[[str], str]:
    """Replaces a layer's number in a path by `*`; the layers are those the trace entered."""
    entered = {
        token.name for part in trace.parts.values() for token in part
        if isinstance(token, Mark) and token.kind == "layer_enter"
    }  # fmt: skip
    lists = sorted({re.escape(name.rpartition(".")[0]) for name in entered})
    if not lists:
        return lambda name: name
    number = re.compile(rf"^({'|'.join(lists)})\.\d+(?=\.|$)")
    return lambda name: number.sub(r"\1.*", name)


def split_parts(trace: Trace) -> dict[str, list[TraceToken]]:
    """The trace's parts as a program has them: the frees that end forward by themselves."""
    forward = trace.parts["forward"]
    end = next((j for j in range(len(forward), 0, -1) if not isinstance(forward[j - 1], Free)), 0)
    return {**trace.parts, "forward": forward[:end], "forward_frees": forward[end:]}


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a part's body starts and how long it is."""

    start: int
    body: int

    def source(self, length_at_base: int) -> list[tuple[str, int]]:
        """Segment and offset of each token at base + 1 layers."""
        return [
            *(("prefix", j) for j in range(self.start)),
            *(("body", j) for j in range(self.body)),
            *(("suffix", j) for j in range(length_at_base - self.start)),
        ]

    def index(self, segment: str, offset: int, repeats: int, repeat: int) -> int:
        """Position in the part at a depth."""
        if segment == "prefix":
            return offset
        if segment == "body":
            return self.start + repeat * self.body + offset
        return self.start + repeats * self.body + offset


def find_cut(base: Sequence[FlatToken], deeper: Sequence[FlatToken]) -> Cut:
    """Split a part into prefix, body and suffix from its token lists at two consecutive depths."""
    body = len(deeper) - len(base)
    pairs = list(zip(base, deeper, strict=False))
    prefix = next((j for j, (x, y) in enumerate(pairs) if not x.matches(y)), len(base))
    backwards = list(zip(reversed(base), reversed(deeper), strict=False))
    suffix = next((j for j, (x, y) in enumerate(backwards) if not x.matches(y)), len(base))
    if body < 0 or prefix + suffix < len(base):
        raise StructureError(
            f"no repeating body: {len(base)} and {len(deeper)} tokens share {prefix} + {suffix}"
        )
    return Cut((len(base) - suffix + prefix) // 2, body)


def _fit_reference(observed: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Integers (c0, cK, ck) with position = c0 + cK K + ck k for all observed (K, k, position)."""
    rows = np.array([[1, total, repeat] for total, repeat, _ in observed], dtype=np.float64)
    positions = np.array([p for _, _, p in observed], dtype=np.float64)
    solution = np.rint(np.linalg.lstsq(rows, positions, rcond=None)[0]).astype(np.int64)
    if not (rows.astype(np.int64) @ solution == positions.astype(np.int64)).all():
        raise StructureError(f"a reference is not affine in depth: {observed}")
    return int(solution[0]), int(solution[1]), int(solution[2])


def _references(
    flats: dict[int, Flat], cuts: dict[str, Cut], part: str, segment: str, offset: int
) -> IntArray:
    """Columns ref_part, c0, c_total, c_repeat of one token, from all depths."""
    observed: list[tuple[int, int, int]] = []
    parts: set[str] = set()
    for repeats, flat in enumerate(flats[depth] for depth in sorted(flats)):
        for repeat in range(repeats if segment == "body" else 1):
            token = flat[part][cuts[part].index(segment, offset, repeats, repeat)]
            if token.ref is not None:
                parts.add(token.ref[0])
                observed.append((repeats, repeat, token.ref[1]))
    if not observed:
        return np.array([-1, 0, 0, 0], dtype=np.int64)
    if len(parts) != 1:
        raise StructureError(f"a token in {part} refers to several parts: {sorted(parts)}")
    return np.array([PARTS.index(parts.pop()), *_fit_reference(observed)], dtype=np.int64)


def compile_program(structure: StructureClass, stack: dict[str, str], trace: Tracer) -> EventProgram:
    """Trace and compile one structure class. Needs no torch: the tracer may be another process.

    Args:
        structure: the class; its first point also gives the structure, at all depths.
        stack: library versions the traces are made with.
        trace: traces the class at given dims.

    Raises:
        StructureError: the class does not follow the pattern.
        SizeFitError: a size has no expression of the searched form.
    """
    points, depths = structure.points, structure.depths
    deepest_fitted = depths[1] if len(depths) > 1 else depths[0]
    traces = {depth: trace(_at_depth(points[0], depth)) for depth in depths}
    flats = {depth: flatten(traced) for depth, traced in traces.items()}
    base, deeper = flats[depths[0]], flats[deepest_fitted]
    if len(depths) > 1:
        cuts = {part: find_cut(base[part], deeper[part]) for part in PARTS}
    else:
        cuts = {part: Cut(len(base[part]), 0) for part in PARTS}
    others = [trace(_at_depth(p, deepest_fitted)) for p in points[1:]]
    at_points = [traces[deepest_fitted], *others]
    observed = [deeper, *(flatten(other) for other in others)]
    for flat in observed[1:]:
        _require_same_structure(deeper, flat)
    fitter = structure.make_fitter()
    builder = _Builder(_templates(at_points, fitter))
    parts = {}
    for part in PARTS:
        rows: dict[str, list[IntArray]] = {"prefix": [], "body": [], "suffix": []}
        for position, (segment, offset) in enumerate(cuts[part].source(len(base[part]))):
            seen = [flat[part][position] for flat in observed]
            is_alloc = seen[0].kind == Token.ALLOC
            size = fitter.fit_token([t.nbytes for t in seen], [t.formula for t in seen]) if is_alloc else None
            head = builder.head(seen[0], size)
            rows[segment].append(np.concatenate([head, _references(flats, cuts, part, segment, offset)]))
        parts[part] = PartProgram(*(np.array(rows[s], dtype=np.int64).reshape(-1, 7) for s in rows))
    _require_same_tokens(flats, cuts)
    return EventProgram(
        key=structure.key,
        stack=stack,
        base_layers=depths[0],
        period=deepest_fitted - depths[0],
        sizes=tuple(builder.sizes),
        labels=tuple(builder.labels),
        parameters=builder.parameters,
        buffers=tuple(
            (name, fitter.fit([t.buffers[j][1] for t in at_points]))
            for j, (name, _) in enumerate(at_points[0].buffers)
        ),
        parts=parts,
    )


def _at_depth(point: Dims, depth: int) -> Dims:
    return {**point, "L": depth}


class _Builder:
    """Collects the distinct sizes and labels of a program."""

    def __init__(self, parameters: tuple[ParameterTemplate, ...]) -> None:
        self.parameters = parameters
        self.sizes: dict[SizeExpression, int] = {}
        self.labels: dict[Label, int] = {}
        self._template = {p.name: j for j, p in enumerate(parameters)}

    def head(self, token: FlatToken, size: SizeExpression | None) -> IntArray:
        """Columns kind, size, label of one token."""
        size_index = label_index = -1
        if size is not None and isinstance(token.label, Label):
            size_index = self.sizes.setdefault(size, len(self.sizes))
            label_index = self.labels.setdefault(token.label, len(self.labels))
        elif token.kind == Token.GRADIENT_READY:
            label_index = self._template[str(token.label)]
        return np.array([token.kind, size_index, label_index], dtype=np.int64)


def _templates(traces: Sequence[Trace], fitter: Fitter) -> tuple[ParameterTemplate, ...]:
    """Parameters with `*` for the layer, shapes as expressions."""
    templates: dict[str, ParameterTemplate] = {}
    star = layer_star(traces[0])
    for j, (name, shape, element_bytes, role, trains) in enumerate(traces[0].parameters):
        general = star(name)
        if general not in templates:
            dims = tuple(fitter.fit([t.parameters[j][1][axis] for t in traces]) for axis in range(len(shape)))
            templates[general] = ParameterTemplate(general, dims, role, element_bytes, trains)
    return tuple(templates.values())


def _require_same_structure(expected: Flat, found: Flat) -> None:
    """All points of a class must have the same tokens but for sizes."""
    for part in PARTS:
        if len(expected[part]) != len(found[part]):
            raise StructureError(
                f"{part} has {len(found[part])} tokens at one point, {len(expected[part])} at another"
            )
        for position, (x, y) in enumerate(zip(expected[part], found[part], strict=True)):
            if not x.same_structure(y) or x.ref != y.ref:
                raise StructureError(f"{part} token {position} differs between points: {x} and {y}")


def _require_same_tokens(flats: dict[int, Flat], cuts: dict[str, Cut]) -> None:
    """Every traced depth must be prefix + body x K + suffix."""
    deeper = flats[sorted(flats)[:2][-1]]
    for repeats, depth in enumerate(sorted(flats)):
        flat = flats[depth]
        for part, cut in cuts.items():
            head = deeper[part][: cut.start]
            body = deeper[part][cut.start : cut.start + cut.body]
            expected = [*head, *body * repeats, *deeper[part][cut.start + cut.body :]]
            same = len(expected) == len(flat[part]) and all(
                x.matches(y) for x, y in zip(expected, flat[part], strict=True)
            )
            if not same:
                raise StructureError(f"{part} at {depth} layers is not prefix + body x {repeats} + suffix")
