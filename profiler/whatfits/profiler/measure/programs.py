"""Event programs made with the libraries of this machine, and how they differ from the shipped ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile import (
    EventProgram,
    ParameterTemplate,
    ProfileKey,
    SizeExpression,
    Token,
    load_program,
)
from whatfits.estimator.profile.program import PARTS, IntArray, Label, PartProgram
from whatfits.profiler.measure.cpu_kernels import CpuKernelTracer
from whatfits.profiler.trace.build_profiles import running_stack
from whatfits.profiler.trace.classes import llama_classes
from whatfits.profiler.trace.compile import FlatToken, StructureError, compile_program, flatten
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.model import build_model, traced_parameters
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.sizes import SizeFitError
from whatfits.profiler.trace.training_step import MicroBatchTracer, assign_categories

__all__ = ["LocalProgram", "compile_here", "difference_from_shipped", "program_of_trace", "trace_here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalProgram:
    """A program made here; `fallback` says why it is a direct trace of one point where a compiled class was wanted."""

    program: EventProgram
    fallback: str | None = None


def compile_here(key: ProfileKey, dims: Dims) -> LocalProgram:
    """Compile a class with the libraries of this machine, or trace one point of it if it does not compile."""
    structure = next(s for s in llama_classes() if s.key == key)
    try:
        program = compile_program(
            key, structure.options, structure.points, structure.symbols, running_stack()
        )
    except (StructureError, SizeFitError) as error:
        return LocalProgram(program=trace_here(key, dims, on_cpu=False), fallback=str(error)[:1000])
    return LocalProgram(program=program)


def trace_here(key: ProfileKey, dims: Dims, *, on_cpu: bool) -> EventProgram:
    """Trace one point directly, with the kernels of a CUDA device or of the CPU."""
    options = StepOptions(tie_embeddings=key.tied, checkpointing=key.checkpointing)
    model = build_model(dims, options)
    tracer = (CpuKernelTracer if on_cpu else MicroBatchTracer)(model)
    parts = tracer.micro_batch(dims["b"], dims["s"])
    assign_categories(parts)
    trace = Trace(
        parts=parts,
        parameters=traced_parameters(model),
        buffers=tuple((n, b.untyped_storage().nbytes()) for n, b in model.named_buffers()),
    )
    return program_of_trace(trace, key, dims["L"])


def program_of_trace(trace: Trace, key: ProfileKey, num_layers: int) -> EventProgram:
    """A program that says one trace and nothing else: no repeating body, every size a number."""
    sizes: dict[int, int] = {}
    labels: dict[Label, int] = {}
    templates = _templates(trace)
    number = {template.name: j for j, template in enumerate(templates)}

    def row(token: FlatToken) -> list[int]:
        size = label = -1
        if isinstance(token.label, Label):
            size = sizes.setdefault(token.nbytes, len(sizes))
            label = labels.setdefault(token.label, len(labels))
        elif token.kind == Token.GRADIENT_READY:
            label = number[token.label]
        part, position = (-1, 0) if token.ref is None else (PARTS.index(token.ref[0]), token.ref[1])
        return [token.kind, size, label, part, position, 0, 0]

    none: IntArray = np.zeros((0, 7), dtype=np.int64)
    parts = {
        name: PartProgram(np.array([row(t) for t in tokens], dtype=np.int64).reshape(-1, 7), none, none)
        for name, tokens in flatten(trace).items()
    }
    return EventProgram(
        key=key,
        stack=running_stack(),
        base_layers=num_layers,
        sizes=tuple(_number(n) for n in sizes),
        labels=tuple(labels),
        parameters=templates,
        buffers=tuple((name, _number(nbytes)) for name, nbytes in trace.buffers),
        parts=parts,
    )


def _number(value: int) -> SizeExpression:
    return SizeExpression(((value, ()),))


def _templates(trace: Trace) -> tuple[ParameterTemplate, ...]:
    found: dict[str, ParameterTemplate] = {}
    for name, shape, nbytes, role, trains in trace.parameters:
        general = ".".join("*" if part.isdigit() else part for part in name.split("."))
        found.setdefault(
            general, ParameterTemplate(general, tuple(_number(n) for n in shape), role, nbytes, trains)
        )
    return tuple(found.values())


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
