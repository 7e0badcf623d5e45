"""Event programs made with the libraries of this machine, and how they differ from the shipped ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.keep_outputs import keep_outputs
from whatfits.estimator.profile import (
    EventProgram,
    ProfileKey,
    Token,
    load_program,
)
from whatfits.profiler.measure.cpu_kernels import CpuKernelTracer
from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.trace.classes import shipped_structures, with_sequence
from whatfits.profiler.trace.compile import StructureError, compile_program
from whatfits.profiler.trace.direct import program_of_trace
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.model import build_model, head_name, traced_parameters
from whatfits.profiler.trace.sizes import SizeFitError
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import MicroBatchTracer, assign_categories, trace_micro_batch

__all__ = ["LocalProgram", "compile_here", "difference_from_shipped", "trace_here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalProgram:
    """A program made here; `fallback` says why it is a direct trace of one point where a compiled class was wanted."""

    program: EventProgram
    fallback: str | None = None


def compile_here(key: ProfileKey, recipe: Recipe) -> LocalProgram:
    """Compile a class with the libraries of this machine, or trace one point of it if it does not compile."""
    eights = replace(key, sequence="eights")
    structure = with_sequence(next(s for s in shipped_structures() if s.key == eights), key.sequence)
    trace = partial(trace_micro_batch, options=structure.options)
    try:
        program = compile_program(structure, running_stack(), trace)
    except (StructureError, SizeFitError) as error:
        return LocalProgram(program=trace_here(key, recipe, on_cpu=False), fallback=str(error)[:1000])
    return LocalProgram(program=program)


def trace_here(key: ProfileKey, recipe: Recipe, *, on_cpu: bool) -> EventProgram:
    """Trace one point directly, with the kernels of a CUDA device or of the CPU."""
    dims = recipe.dims
    model = build_model(dims, recipe.options)
    tracer = (CpuKernelTracer if on_cpu else MicroBatchTracer)(model, recipe.options)
    parts = tracer.micro_batch(dims["b"], dims["s"], target_len=dims.get("t"))
    assign_categories(parts, head_name(model))
    trace = Trace(
        parts=parts,
        parameters=traced_parameters(model),
        buffers=tuple((n, b.untyped_storage().nbytes()) for n, b in model.named_buffers()),
    )
    program = program_of_trace(trace, key, dims["L"], running_stack())
    return keep_outputs(program, recipe.training.loop.keep_outputs)


def difference_from_shipped(program: EventProgram) -> dict[str, Any]:
    """Whether the shipped program of the class says the same, and the first token at which it does not."""
    try:
        shipped = load_program(program.key)
    except UnsupportedError as error:
        return {"same": None, "reason": str(error)}
    ours, theirs = (_readable(p) for p in (program, shipped))
    same = ours == theirs and program.parameters == shipped.parameters and program.buffers == shipped.buffers
    report: dict[str, Any] = {"same": same, "stack": program.stack, "shipped_stack": shipped.stack}
    if not same:
        report["parameters_differ"] = program.parameters != shipped.parameters
        report["buffers_differ"] = program.buffers != shipped.buffers
        report["parts"] = {name: _first_difference(ours[name], theirs[name]) for name in ours}
    return report


def _readable(program: EventProgram) -> Mapping[str, list[str]]:
    """Each part's segments as lines that say everything about a token."""
    return {
        f"{name} {segment}": [_line(program, row) for row in getattr(part, segment).tolist()]
        for name, part in program.parts.items()
        for segment in ("prefix", "body", "suffix")
    }


def _line(program: EventProgram, row: list[int]) -> str:
    kind, size, label, *reference = row
    if kind == Token.ALLOC:
        origin = program.labels[label]
        return f"alloc {program.sizes[size]} {origin.op} {origin.module} {origin.phase} {origin.category}"
    name = program.parameters[label].name if kind == Token.GRADIENT_READY else ""
    return f"{Token(kind).name.lower()} {name} {reference}"


def _first_difference(ours: list[str], shipped: list[str]) -> dict[str, Any]:
    at = next((j for j, (x, y) in enumerate(zip(ours, shipped, strict=False)) if x != y), None)
    if at is None and len(ours) == len(shipped):
        return {"same": True}
    at = min(len(ours), len(shipped)) if at is None else at
    return {
        "same": False,
        "num_tokens": [len(ours), len(shipped)],
        "at": at,
        "here": ours[max(at - 3, 0) : at + 10],
        "shipped": shipped[max(at - 3, 0) : at + 10],
    }
