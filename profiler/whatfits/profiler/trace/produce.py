"""From a structure class to a profile that is held against traces it was not compiled from.

Needs no torch: the tracer may be another process. Where the class does not compile, or what compiled differs from a
direct trace at any held-out point, the outcome is a direct trace of one point that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.profile import CountTable, EventProgram, build_table
from whatfits.profiler.trace.classes import StructureClass, held_out_points
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
        program: of the whole class, or of the direct trace alone.
        trace: the direct trace of the point.
        held_out: every point the class was held against.
        fallback: why the program is of the direct trace alone; none where the class compiled and is exact.
    """

    program: EventProgram
    trace: Trace
    held_out: tuple[HeldOut, ...]
    fallback: str | None


def compile_and_verify(
    structure: StructureClass, stack: dict[str, str], trace: Tracer, points: Sequence[Dims]
) -> Compiled:
    """Compile a class and compare it with direct traces at points.

    Raises:
        StructureError: the class does not follow the pattern.
        SizeFitError: a size has no expression of the searched form.
        ValueError: the program has no table, or does not cover a point.
    """
    program = compile_program(structure.key, structure.points, structure.symbols, stack, trace)
    table = build_table(program)
    held_out = []
    for dims in points:
        direct = trace(dims)
        comparison = compare_with_trace(program, table, direct, dims)
        held_out.append(HeldOut(dims=dims, trace=direct, comparison=comparison))
    return Compiled(program=program, table=table, held_out=tuple(held_out))


def produce(structure: StructureClass, stack: dict[str, str], trace: Tracer, dims: Dims) -> Produced:
    """Compile a class and verify it, at `dims` too; a direct trace of `dims` alone where that fails."""
    held_out: tuple[HeldOut, ...] = ()
    try:
        compiled = compile_and_verify(structure, stack, trace, [*held_out_points(structure), dims])
    except (StructureError, SizeFitError, ValueError) as error:
        direct, fallback = trace(dims), str(error)[:_SHOWN_REASON]
    else:
        direct, held_out = compiled.held_out[-1].trace, compiled.held_out
        if not compiled.different:
            return Produced(program=compiled.program, trace=direct, held_out=held_out, fallback=None)
        fallback = f"the compiled class differs from a direct trace at {compiled.different[0].dims}"
    program = program_of_trace(direct, structure.key, dims["L"], stack)
    return Produced(program=program, trace=direct, held_out=held_out, fallback=fallback)
