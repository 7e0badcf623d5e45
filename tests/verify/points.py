"""Profiles against direct traces of the real model code, at points no profile was built from."""

from collections.abc import Iterator

from tests.verify.report import Section
from whatfits.estimator.catalog import find_model
from whatfits.estimator.profile import load_program, load_table
from whatfits.profiler.trace.classes import shipped_structures
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import Comparison, compare_with_trace

COLUMNS = (
    "model",
    "L",
    "b",
    "s",
    "ckpt",
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
ODD = {"L": 9, "b": 5, "s": 257, "h": 444, "i": 1003, "a": 12, "d": 104, "V": 3001}


def _points() -> Iterator[tuple[str, Dims, bool, bool]]:
    """Name, dims, tied, checkpointed."""
    for name, depth, batch, seq_len in MODELS:
        model = find_model(name)
        dims = {**model.dims, "L": depth or model.num_layers, "b": batch, "s": seq_len}
        for checkpointing in (False, True):
            yield name, dims, model.tie_embeddings, checkpointing
    for structure in shipped_structures():
        kv_heads = {"one": 1, "grouped": 4, "full": ODD["a"]}[structure.key.kv_heads]
        changes = {"k": kv_heads, "b": 1 if structure.key.micro_batch == "one" else ODD["b"]}
        yield (
            "odd dims",
            {**ODD, **changes},
            structure.options.tie_embeddings,
            structure.options.checkpointing == "full",
        )


def _compare(dims: Dims, *, tied: bool, checkpointing: bool) -> tuple[str, Comparison]:
    key = next(
        s.key
        for s in shipped_structures()
        if s.key.tied == tied
        and (s.options.checkpointing == "full") == checkpointing
        and s.key.micro_batch == ("one" if dims["b"] == 1 else "many")
        and s.key.kv_heads == ("full" if dims["k"] == dims["a"] else "one" if dims["k"] == 1 else "grouped")
    )
    trace = trace_micro_batch(
        dims, StepOptions(tie_embeddings=tied, checkpointing="full" if checkpointing else "none")
    )
    return key.slug, compare_with_trace(load_program(key), load_table(key), trace, dims)


def verify_points() -> Section:
    """Peak of the table and every event of the program against a trace."""
    rows: list[tuple[object, ...]] = []
    failures, seen, events = [], set(), 0
    for name, dims, tied, checkpointing in _points():
        slug, found = _compare(dims, tied=tied, checkpointing=checkpointing)
        seen.add(slug)
        events += found.num_events
        difference = found.table_peak_bytes - found.traced_peak_bytes
        short = slug.partition("mb_")[2]
        rows.append(
            (name, dims["L"], dims["b"], dims["s"], "full" if checkpointing else "none", f"mb_{short}",
             found.traced_peak_bytes, found.table_peak_bytes, difference, found.num_events, found.num_different_events)
        )  # fmt: skip
        if not found.exact:
            failures.append(f"{name} {dims} {slug}")
    missing = {structure.key.slug for structure in shipped_structures()} - seen
    failures += [f"no point in {slug}" for slug in sorted(missing)]
    return Section(
        title="Table and program equal direct traces",
        summary=f"{len(rows)} unseen points in {len(seen)} of {len(list(shipped_structures()))} classes, {events:,} events, "
        f"{sum(bool(r[-1]) or bool(r[-3]) for r in rows)} points differ",
        columns=COLUMNS,
        rows=rows,
        failures=failures,
    )
