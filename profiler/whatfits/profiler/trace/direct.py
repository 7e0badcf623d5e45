"""A program that says one direct trace token by token: nothing repeats, and every parameter is named by itself."""

from collections.abc import Iterator

import numpy as np

from whatfits.estimator.profile import (
    EventProgram,
    ParameterTemplate,
    ProfileKey,
    SizeExpression,
    Token,
    expand_structure,
)
from whatfits.estimator.profile.program import PARTS, IntArray, Label, PartProgram
from whatfits.profiler.trace.compile import flatten, split_parts
from whatfits.profiler.trace.events import Mark, Trace

__all__ = ["program_at_depth", "program_of_trace"]


def program_of_trace(trace: Trace, key: ProfileKey, num_layers: int, stack: dict[str, str]) -> EventProgram:
    """Every size a number: it answers the traced dims alone."""
    flat = flatten(trace)
    sizes = (_number(token.nbytes) for part in PARTS for token in flat[part] if token.kind == Token.ALLOC)
    return _program(trace, key, num_layers, stack, sizes)


def program_at_depth(program: EventProgram, trace: Trace, num_layers: int) -> EventProgram:
    """A compiled class of one config at the depth of the config: its sizes, on the tokens of a direct trace.

    Raises:
        ValueError: the program has other allocations than the trace.
    """
    events = expand_structure(program, num_layers)
    chosen = events.size_index[events.kind == Token.ALLOC]
    flat = flatten(trace)
    count = sum(token.kind == Token.ALLOC for part in PARTS for token in flat[part])
    if count != len(chosen):
        raise ValueError(f"{len(chosen)} allocations at {num_layers} layers, and {count} in a direct trace")
    return _program(trace, program.key, num_layers, program.stack, (program.sizes[j] for j in chosen))


def _program(
    trace: Trace, key: ProfileKey, num_layers: int, stack: dict[str, str], sizes: Iterator[SizeExpression]
) -> EventProgram:
    """A program of a trace's tokens with the sizes given in the order of its allocations."""
    numbers: dict[SizeExpression, int] = {}
    labels: dict[Label, int] = {}
    parameters = {name: j for j, (name, *_) in enumerate(trace.parameters)}
    flat, parts = flatten(trace), split_parts(trace)
    none: IntArray = np.zeros((0, 7), dtype=np.int64)
    programs = {}
    for part in PARTS:
        rows = []
        for token, traced in zip(flat[part], parts[part], strict=True):
            size = label = -1
            if isinstance(token.label, Label):
                size = numbers.setdefault(next(sizes), len(numbers))
                label = labels.setdefault(token.label, len(labels))
            elif isinstance(traced, Mark) and token.kind == Token.GRADIENT_READY:
                label = parameters[traced.name]
            where, position = (-1, 0) if token.ref is None else (PARTS.index(token.ref[0]), token.ref[1])
            rows.append([token.kind, size, label, where, position, 0, 0])
        programs[part] = PartProgram(np.array(rows, dtype=np.int64).reshape(-1, 7), none, none)
    return EventProgram(
        key=key,
        stack=stack,
        base_layers=num_layers,
        period=0,
        sizes=tuple(numbers),
        labels=tuple(labels),
        parameters=tuple(
            ParameterTemplate(name, tuple(_number(n) for n in shape), role, nbytes, trains)
            for name, shape, nbytes, role, trains in trace.parameters
        ),
        buffers=tuple((name, _number(nbytes)) for name, nbytes in trace.buffers),
        parts=programs,
    )


def _number(value: int) -> SizeExpression:
    return SizeExpression(((value, ()),) if value else ())
