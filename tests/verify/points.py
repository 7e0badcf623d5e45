"""Profiles against direct traces of the real model code, at points no profile was built from.

Of the points at odd dims, two in each class, the report lists those that differ.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.verify.report import Section
from whatfits.estimator.catalog import find_model
from whatfits.estimator.profile import DEFAULT_STACK, load_program, load_table
from whatfits.profiler.trace.child_process import TraceChild
from whatfits.profiler.trace.classes import class_at, shipped_structures
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace

COLUMNS = (
    "model",
    "L",
    "b",
    "s",
    "class",
    "traced peak",
    "table peak",
    "difference",
    "events",
    "different",
)
# model, depth (0: the model's own), micro-batch, sequence; each with and without checkpointing
MODELS = (
    ("galore-llama-60m", 0, 7, 333), ("galore-llama-130m", 0, 1, 1025), ("galore-llama-350m", 0, 5, 511),
    ("galore-llama-1b", 0, 3, 2048), ("galore-llama-7b", 0, 2, 777), ("galore-llama-7b", 0, 1, 4096),
    ("galore-llama-13b", 0, 3, 1000), ("llama-3-8b", 0, 2, 8192), ("llama-3-8b", 21, 1, 1500),
    ("llama-3-70b", 0, 1, 2048), ("llama-3-70b", 0, 2, 129), ("llama-3.2-1b", 0, 4, 640),
)  # fmt: skip
ODD = {"L": 9, "b": 5, "h": 444, "i": 1003, "a": 12, "d": 104, "V": 3001, "r": 8}


SECOND_STACK = {"torch": "2.13", "transformers": "4.57"}
Tracer = Callable[[Dims, StepOptions], Trace]


def _points() -> Iterator[tuple[str, Dims, StepOptions]]:
    """Name, dims and options: the models as they are trained most, and each class at odd dims."""
    for name, depth, batch, seq_len in MODELS:
        model = find_model(name)
        dims = {**model.dims, "L": depth or model.num_layers, "b": batch, "s": seq_len}
        for checkpointing in ("none", "full"):
            yield name, dims, StepOptions(tie_embeddings=model.tie_embeddings, checkpointing=checkpointing)
    for structure in shipped_structures():
        kv_heads = {"one": 1, "grouped": 4, "full": ODD["a"]}[structure.key.kv_heads]
        changes = {"k": kv_heads, "b": 1 if structure.key.micro_batch == "one" else ODD["b"]}
        for seq_len in (257, 1008):
            yield "odd dims", {**ODD, **changes, "s": seq_len}, structure.options


def _compare_all(title: str, stack: dict[str, str], trace: Tracer) -> Section:
    rows: list[tuple[object, ...]] = []
    failures, seen, events = [], set(), 0
    for name, dims, options in _points():
        key = class_at(options, dims).key
        program, table = load_program(key, stack), load_table(key, stack)
        found = compare_with_trace(program, table, trace(dims, options), dims)
        seen.add(replace(key, sequence="eights").slug)
        events += found.num_events
        difference = found.table_peak_bytes - found.traced_peak_bytes
        rows.append(
            (name, dims["L"], dims["b"], dims["s"], key.slug,
             found.traced_peak_bytes, found.table_peak_bytes, difference, found.num_events, found.num_different_events)
        )  # fmt: skip
        if not found.exact:
            failures.append(f"{name} {dims} {key.slug}")
    classes = {structure.key.slug for structure in shipped_structures()}
    failures += [f"no point in {slug}" for slug in sorted(classes - seen)]
    versions = ", ".join(f"{name} {version}" for name, version in stack.items())
    return Section(
        title=title,
        summary=f"{versions}: {len(rows)} unseen points in {len(seen)} of {len(classes)} classes, {events:,} events, "
        f"{sum(bool(r[-1]) or bool(r[-3]) for r in rows)} points differ",
        columns=COLUMNS,
        rows=[row for row in rows if row[0] != "odd dims" or row[-1] or row[-3]],
        failures=failures,
    )


def verify_points() -> Section:
    """Peak of the table and every event of the program against a trace."""
    return _compare_all("Table and program equal direct traces", DEFAULT_STACK, trace_micro_batch)


def verify_second_stack() -> Section:
    """The same for the second stack, traced by the interpreter that WHATFITS_STACK_PYTHON names."""
    title, python = "The same with transformers 4.57", os.environ.get("WHATFITS_STACK_PYTHON")
    if python is None:
        summary = "not run: WHATFITS_STACK_PYTHON names no interpreter"
        return Section(title=title, summary=summary, columns=COLUMNS, rows=(), is_compared=False)
    with TraceChild(python) as child:
        if child.stack != SECOND_STACK:
            raise ValueError(f"{python} has {child.stack}, not {SECOND_STACK}")
        return _compare_all(title, SECOND_STACK, child.trace)
