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

__all__ = ["Compiled", "HeldOut", "compile_and_verify", "produce"]

_SHOWN_REASON = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A point no size was fitted at, its direct trace and what differs."""

    dims: Dims
    trace: Trace
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What came of a class.

    Attributes:
        program: of the class, or of one direct trace.
        table: of the class; none for a direct trace.
        held_out: every point the program was compared at.
        fallback: why it is a direct trace, none for a class.
    """

    program: EventProgram
    table: CountTable | None
    held_out: tuple[HeldOut, ...]
    fallback: str | None

    @property
    def exact(self) -> bool:
        """Whether the compiled class equals every direct trace it was held against."""
        return self.fallback is None and all(point.comparison.exact for point in self.held_out)


def compile_and_verify(
    structure: StructureClass, stack: dict[str, str], trace: Tracer, points: Sequence[Dims]
) -> Compiled:
    """Compile a class and compare it with direct traces at points.

    Raises:
        StructureError: the class does not follow the pattern.
        SizeFitError: a size has no expression of the searched form.
        ValueError: the program has no table.
    """
    program = compile_program(structure.key, structure.points, structure.symbols, stack, trace)
    table = build_table(program)
    held_out = []
    for dims in points:
        direct = trace(dims)
        comparison = compare_with_trace(program, table, direct, dims)
        held_out.append(HeldOut(dims=dims, trace=direct, comparison=comparison))
    return Compiled(program=program, table=table, held_out=tuple(held_out), fallback=None)


def produce(structure: StructureClass, stack: dict[str, str], trace: Tracer, dims: Dims) -> Compiled:
    """Compile a class, verify it at its held-out points and at `dims`; a direct trace of `dims` where that fails."""
    try:
        compiled = compile_and_verify(structure, stack, trace, [*held_out_points(structure), dims])
    except (StructureError, SizeFitError, ValueError) as error:
        return _direct(structure, stack, trace(dims), dims, (), str(error))
    if compiled.exact:
        return compiled
    different = [point for point in compiled.held_out if not point.comparison.exact]
    reason = f"the compiled program differs from a direct trace at {different[0].dims}"
    last = compiled.held_out[-1]
    return _direct(structure, stack, last.trace, dims, compiled.held_out, reason)


def _direct(
    structure: StructureClass,
    stack: dict[str, str],
    trace: Trace,
    dims: Dims,
    held_out: tuple[HeldOut, ...],
    reason: str,
) -> Compiled:
    program = program_of_trace(trace, structure.key, dims["L"], stack)
    return Compiled(program=program, table=None, held_out=held_out, fallback=reason[:_SHOWN_REASON])
