"""How traces travel between two Python processes: JSON lines, long lists as columns. Standard library only."""

from dataclasses import asdict, fields
from typing import Any

from whatfits.profiler.trace.events import Alloc, Free, Mark, Token, Trace
from whatfits.profiler.trace.options import AdapterOptions, StepOptions

__all__ = ["options_from_json", "options_to_json", "trace_from_json", "trace_to_json"]

Json = dict[str, Any]  # Any: whatever JSON holds

_ALLOC, _FREE, _MARK = 0, 1, 2


def options_to_json(options: StepOptions) -> Json:
    """Plain data; what is None stays out."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def options_from_json(data: Json) -> StepOptions:
    """Inverse of `options_to_json`; what is left out has its default.

    Raises:
        TypeError: a name that is no option.
    """
    known = {field.name for field in fields(StepOptions)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise TypeError(f"options: {', '.join(unknown)}; accepted: {', '.join(sorted(known))}")
    values = {name: _tuples(value) for name, value in data.items()}
    if values.get("adapter") is not None:
        values["adapter"] = AdapterOptions(**{k: _tuples(v) for k, v in data["adapter"].items()})
    return StepOptions(**values)


def _tuples(value: Any) -> Any:  # Any: one JSON value
    return tuple(value) if isinstance(value, list) else value


def trace_to_json(trace: Trace) -> Json:
    """Columns kind, block, nbytes, origin and formula per part.

    Bytes and formulas only of allocations, origins of marks too; a formula's place in the list, 0 for none.
    """
    origins: dict[tuple[object, ...], int] = {}
    formulas: dict[tuple[object, ...], int] = {(): 0}

    def columns(tokens: list[Token]) -> list[list[int]]:
        kinds: list[int] = []
        blocks: list[int] = []
        sizes: list[int] = []
        sources: list[int] = []
        calls: list[int] = []
        for token in tokens:
            blocks.append(token.block)
            if isinstance(token, Free):
                kinds.append(_FREE)
                continue
            if isinstance(token, Alloc):
                kinds.append(_ALLOC)
                sizes.append(token.nbytes)
                calls.append(formulas.setdefault(token.formula, len(formulas)))
                origin: tuple[object, ...] = (
                    token.op, token.module, token.phase, token.recompute, token.internal, token.category,
                )  # fmt: skip
            else:
                kinds.append(_MARK)
                origin = (token.kind, token.name)
            sources.append(origins.setdefault(origin, len(origins)))
        return [kinds, blocks, sizes, sources, calls]

    parts = {name: columns(tokens) for name, tokens in trace.parts.items()}
    return {
        "parts": parts,
        "origins": [list(origin) for origin in origins],
        "formulas": [list(formula) for formula in formulas],
        "parameters": [list(x) for x in trace.parameters],
        "buffers": [list(x) for x in trace.buffers],
    }


def trace_from_json(data: Json) -> Trace:
    """Inverse of `trace_to_json`."""
    origins, formulas = data["origins"], [tuple(formula) for formula in data["formulas"]]
    return Trace(
        parts={name: _tokens(columns, origins, formulas) for name, columns in data["parts"].items()},
        parameters=tuple((n, tuple(shape), size, role, t) for n, shape, size, role, t in data["parameters"]),
        buffers=tuple((name, nbytes) for name, nbytes in data["buffers"]),
    )


def _tokens(
    columns: list[list[int]], origins: list[list[Any]], formulas: list[tuple[Any, ...]]
) -> list[Token]:
    kinds, blocks, sizes, sources, calls = columns
    size, source, call = iter(sizes), iter(sources), iter(calls)
    tokens: list[Token] = []
    for kind, block in zip(kinds, blocks, strict=True):
        if kind == _FREE:
            tokens.append(Free(block))
        elif kind == _MARK:
            name, where = origins[next(source)]
            tokens.append(Mark(name, where, block))
        else:
            op, module, phase, recompute, internal, category = origins[next(source)]
            tokens.append(
                Alloc(
                    block, next(size), op, module, phase,
                    recompute=recompute, internal=internal, category=category, formula=formulas[next(call)],
                )
            )  # fmt: skip
    return tokens
