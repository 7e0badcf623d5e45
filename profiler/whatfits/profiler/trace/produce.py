"""From a structure class to a profile that is held against traces it was not compiled from.

Needs no torch: the tracer may be another process. Where the class does not compile, or what compiled differs from a
direct trace at any held-out point, the outcome is a direct trace of one point that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whatfits.estimator.profile import CountTable, EventProgram, build_table
from whatfits.profiler.trace.classes import StructureClass, held_out_points, with_sequence
from whatfits.profiler.trace.compile import StructureError, Tracer, compile_program
from whatfits.profiler.trace.direct import program_of_trace
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import Dims
from whatfits.profiler.trace.sizes import SizeFitError
from whatfits.profiler.trace.verify import Comparison, compare_with_trace

__all__ = ["Compiled", "HeldOut", "Produced", "compile_and_verify", "produce"]

_SHOWN_REASON = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A point no size was fitted at, its direct trace and what differs."""

    dims: Dims
    trace: Trace
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compiled class and every point it was held against."""

    program: EventProgram
    table: CountTable
    held_out: tuple[HeldOut, ...]

    @property
    def different(self) -> tuple[HeldOut, ...]:
        """The points at which it is not what the code does."""
        return tuple(point for point in self.held_out if not point.comparison.exact)


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What came of a class at one point.

    Attributes:
        programs: what to keep of the class: one program, or one for other sequence lengths too; none for a direct trace.
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

    One program answers for all sequence lengths where lengths that are no multiple of 8 have the same events; where
    they have not, they get a program of their own, the first of two.

    Raises:
        StructureError: the class does not follow the pattern.
        SizeFitError: a size has no expression of the searched form.
        ValueError: a program has no table, or does not cover a point.
    """
    eights, other = (with_sequence(structure, name) for name in ("eights", "other"))
    program, table = _compile(eights, stack, trace)
    held_out = _hold(
        program, table, trace, [*held_out_points(eights), *(p for p in extra if p["s"] % 8 == 0)]
    )
    others = [*held_out_points(other), *(p for p in extra if p["s"] % 8)]
    found = _hold(program, table, trace, others)
    if all(point.comparison.exact for point in found):
        return (Compiled(program=program, table=table, held_out=(*held_out, *found)),)
    compiled = Compiled(program=program, table=table, held_out=held_out)
    program, table = _compile(other, stack, trace)
    found = tuple(replace(p, comparison=compare_with_trace(program, table, p.trace, p.dims)) for p in found)
    return Compiled(program=program, table=table, held_out=found), compiled


def _compile(
    structure: StructureClass, stack: dict[str, str], trace: Tracer
) -> tuple[EventProgram, CountTable]:
    program = compile_program(structure.key, structure.points, structure.symbols, stack, trace)
    return program, build_table(program)


def _hold(
    program: EventProgram, table: CountTable, trace: Tracer, points: Sequence[Dims]
) -> tuple[HeldOut, ...]:
    traced = [(dims, trace(dims)) for dims in points]
    return tuple(
        HeldOut(dims=dims, trace=direct, comparison=compare_with_trace(program, table, direct, dims))
        for dims, direct in traced
    )


def produce(structure: StructureClass, stack: dict[str, str], trace: Tracer, dims: Dims) -> Produced:
    """Compile a class and verify it, at `dims` too; a direct trace of `dims` alone where that fails."""
    try:
        compiled = compile_and_verify(structure, stack, trace, [dims])
    except (StructureError, SizeFitError, ValueError) as error:
        return _fall_back(structure, stack, trace(dims), dims, (), str(error))
    held_out = tuple(point for one in compiled for point in one.held_out)
    different = [point for one in compiled for point in one.different]
    (answering,) = (one for one in compiled if any(point.dims is dims for point in one.held_out))
    direct = next(point.trace for point in held_out if point.dims is dims)
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
    program = program_of_trace(direct, structure.key, dims["L"], stack)
    return Produced(
        programs=(), program=program, trace=direct, held_out=held_out, fallback=reason[:_SHOWN_REASON]
    )
