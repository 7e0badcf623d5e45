"""A program that says one direct trace and nothing else: what is left where a class does not compile."""

import numpy as np

from whatfits.estimator.profile import EventProgram, ParameterTemplate, ProfileKey, SizeExpression, Token
from whatfits.estimator.profile.program import PARTS, IntArray, Label, PartProgram
from whatfits.profiler.trace.compile import FlatToken, flatten
from whatfits.profiler.trace.events import Trace

__all__ = ["program_of_trace"]


def program_of_trace(trace: Trace, key: ProfileKey, num_layers: int, stack: dict[str, str]) -> EventProgram:
    """No repeating body, every size a number: it answers the traced dims alone."""
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
        stack=stack,
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
