"""From a structure class to a profile that is held against traces it was not compiled from.

Needs no torch: the tracer may be another process. Where the class does not compile, or what compiled differs from a
direct trace at any held-out point, the outcome is a direct trace of one point that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from whatfits.estimator.profile import CountTable, EventProgram, build_table
from whatfits.profiler.trace.classes import StructureClass, with_sequence
from whatfits.profiler.trace.compile import StructureError, Tracer, compile_program
from whatfits.profiler.trace.config_classes import classes_of_lengths, sequence_of
from whatfits.profiler.trace.direct import program_at_depth, program_of_trace
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import Dims
from whatfits.profiler.trace.sizes import SizeFitError
from whatfits.profiler.trace.verify import Comparison, compare_with_trace

__all__ = ["Compiled", "HeldOut", "Produced", "compile_and_verify", "direct_program", "produce"]

_SHOWN_REASON = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A point no size was fitted at, its direct trace and what differs."""

    dims: Dims
    trace: Trace
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled class and every point it was held against; `shallow` is what a config's program was made from."""

    program: EventProgram
    table: CountTable
    held_out: tuple[HeldOut, ...] = ()
    shallow: EventProgram | None = None

    @cached_property
    def shallow_table(self) -> CountTable:
        """The table of what a config's program was made from."""
        assert self.shallow is not None, "of one config"
        return build_table(self.shallow)

    @property
    def different(self) -> tuple[HeldOut, ...]:
        """The points at which it is not what the code does."""
        return tuple(point for point in self.held_out if not point.comparison.exact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What came of a class at one point.

    Attributes:
        programs: what to keep of the class: one program, or one for each kind of sequence length; none for a direct trace.
        program: that answers the point, of the class or of the direct trace alone.
        trace: the direct trace of the point.
        held_out: every point the class was held against.
        fallback: why the program is of the direct trace alone; none where the class compiled and is exact.
    """

    programs: tuple[EventProgram, ...]
    program: EventProgram
    trace: Trace
    held_out: tuple[HeldOut, ...]
    fallback: str | None


def compile_and_verify(
    structure: StructureClass, stack: dict[str, str], trace: Tracer, extra: Sequence[Dims] = ()
) -> tuple[Compiled, ...]:
    """Compile a class and compare it with direct traces at its held-out points and at `extra` ones.

    One program answers for all sequence lengths where lengths that are no multiple of 8, of a config of 16, have the
    same events; where they have not, each kind gets a program of its own, and these come first.

    Raises:
        StructureError: the class does not follow the pattern.
        SizeFitError: a size has no expression of the searched form.
        ValueError: a program has no table, or does not cover a point.
    """
    first, *others = _by_sequence(structure)
    trace = _remembering(trace)
    compiled = _compile(first, stack, trace)
    here = [point for point in extra if not others or _is_of(first, point)]
    held_out = _hold(compiled, trace, [*first.held_out, *here])
    found = [
        (one, _hold(compiled, trace, [*one.held_out, *(p for p in extra if _is_of(one, p))]))
        for one in others
    ]
    if all(point.comparison.exact for _, points in found for point in points):
        held_out += tuple(point for _, points in found for point in points)
        return (replace(compiled, held_out=held_out),)
    separate = [(_compile(one, stack, trace), points) for one, points in found]
    return (
        *(
            replace(one, held_out=tuple(_compare(one, p.dims, p.trace) for p in points))
            for one, points in separate
        ),
        replace(compiled, held_out=held_out),
    )


def _remembering(trace: Tracer) -> Tracer:
    """Traces no point twice: a config's own depth is both written down and compared."""
    known: dict[tuple[tuple[str, int], ...], Trace] = {}

    def remembered(dims: Dims) -> Trace:
        name = tuple(sorted(dims.items()))
        if name not in known:
            known[name] = trace(dims)
        return known[name]

    return remembered


def _by_sequence(structure: StructureClass) -> tuple[StructureClass, ...]:
    """The class for lengths that are a multiple of 8, of a config of 16, then those for others if the model has lengths."""
    facts = structure.facts
    if facts is None:
        return with_sequence(structure, "eights"), with_sequence(structure, "other")
    classes = classes_of_lengths(structure)
    for one in classes:
        if any(sequence_of(point, facts) != one.key.sequence for point in (*one.points, *one.held_out)):
            raise StructureError(f"too few lengths are of the kind {one.key.sequence}")
    return classes


def _is_of(structure: StructureClass, dims: Dims) -> bool:
    if structure.facts is None:
        return (dims["s"] % 8 == 0) == (structure.key.sequence == "eights")
    return sequence_of(dims, structure.facts) == structure.key.sequence


def _compile(structure: StructureClass, stack: dict[str, str], trace: Tracer) -> Compiled:
    """Compile a class; one of a config whose layers do not repeat as they look at its own depth."""
    if structure.facts is None:
        program = compile_program(structure, stack, trace)
        return Compiled(program=program, table=build_table(program))
    depth = structure.facts.num_layers
    try:
        shallow = compile_program(structure, stack, trace)
    except StructureError:
        if len(structure.depths) == 1:
            raise
        shallow = compile_program(replace(structure, depths=(depth,)), stack, trace)
    point = next(point for point in structure.held_out if point["L"] == depth)
    program = program_at_depth(shallow, trace(point), depth)
    return Compiled(program=program, table=build_table(program), shallow=shallow)


def _hold(compiled: Compiled, trace: Tracer, points: Sequence[Dims]) -> tuple[HeldOut, ...]:
    """Compare with direct traces at the points, all at its own depth if it answers no other."""
    only = compiled.shallow if compiled.shallow is not None and not compiled.shallow.period else None
    at = points if only is None else [{**dims, "L": only.base_layers} for dims in points]
    return tuple(_compare(compiled, dims, trace(dims)) for dims in at)


def _compare(compiled: Compiled, dims: Dims, direct: Trace) -> HeldOut:
    """Of one config the program of its depth is held against that depth alone, what it was made from against others."""
    program, table = compiled.program, compiled.table
    if compiled.shallow is not None and dims["L"] != program.base_layers:
        program, table = compiled.shallow, compiled.shallow_table
    return HeldOut(dims=dims, trace=direct, comparison=compare_with_trace(program, table, direct, dims))


def produce(structure: StructureClass, stack: dict[str, str], trace: Tracer, dims: Dims) -> Produced:
    """Compile a class and verify it, at `dims` too; a direct trace of `dims` alone where that fails."""
    try:
        compiled = compile_and_verify(structure, stack, trace, [dims])
    except (StructureError, SizeFitError, ValueError) as error:
        return _fall_back(structure, stack, trace(dims), dims, (), str(error))
    held_out = tuple(point for one in compiled for point in one.held_out)
    different = [point for one in compiled for point in one.different]
    answering = next(one for one in compiled if any(point.dims == dims for point in one.held_out))
    direct = next(point.trace for point in held_out if point.dims == dims)
    if different:
        reason = f"the compiled class differs from a direct trace at {different[0].dims}"
        return _fall_back(structure, stack, direct, dims, held_out, reason)
    programs = tuple(one.program for one in compiled)
    return Produced(
        programs=programs, program=answering.program, trace=direct, held_out=held_out, fallback=None
    )


def _fall_back(
    structure: StructureClass,
    stack: dict[str, str],
    direct: Trace,
    dims: Dims,
    held_out: tuple[HeldOut, ...],
    reason: str,
) -> Produced:
    program = direct_program(structure, stack, direct, dims, reason[:_SHOWN_REASON])
    return Produced(programs=(), program=program, trace=direct, held_out=held_out, fallback=program.fallback)


def direct_program(
    structure: StructureClass, stack: dict[str, str], trace: Trace, dims: Dims, why: str
) -> EventProgram:
    """The program of one direct trace, which answers its micro-batch and sequence length alone; `why` says the reason."""
    key = structure.key.at(dims["b"], dims["s"], dims.get("t")) if structure.key.config else structure.key
    return replace(program_of_trace(trace, key, dims["L"], stack), fallback=why)
