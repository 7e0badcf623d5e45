"""Shipped profiles against direct traces at points no profile was built from, and against a fresh compilation."""

from collections.abc import Iterator
from functools import partial

import pytest

from whatfits.estimator.profile import DEFAULT_STACK, build_table, load_program, load_table
from whatfits.estimator.profile.store import shipped_classes
from whatfits.profiler.trace.classes import StructureClass, held_out_points, shipped_structures
from whatfits.profiler.trace.compile import compile_program
from whatfits.profiler.trace.options import Dims
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace

pytestmark = pytest.mark.skipif(
    running_stack() != DEFAULT_STACK,
    reason=f"the shipped profiles are of {DEFAULT_STACK}, installed is {running_stack()}",
)
CLASSES = {structure.key.slug: structure for structure in shipped_structures()}
COMPILED = (
    "ckpt_none-loss_standard-mb_many-kv_full-untied",
    "ckpt_full-loss_standard-mb_one-kv_grouped-tied",
)


def find_class(ending: str) -> StructureClass:
    (slug,) = (slug for slug in CLASSES if slug.endswith(ending))
    return CLASSES[slug]


def unseen_points() -> Iterator[tuple[str, Dims]]:
    """One point for each value of everything that makes a class, with odd dims and depths."""
    dims = {"L": 8, "b": 3, "s": 129, "h": 168, "i": 461, "a": 6, "k": 6, "d": 24, "V": 1013}
    yield "ckpt_none-loss_standard-mb_many-kv_full-untied", dims
    yield "ckpt_none-loss_standard-mb_many-kv_full-tied", {**dims, "L": 4, "s": 2}
    yield "ckpt_none-loss_standard-mb_many-kv_grouped-untied", {**dims, "k": 2, "d": 136}
    yield "ckpt_none-loss_standard-mb_many-kv_one-tied", {**dims, "k": 1, "L": 13}
    yield "ckpt_none-loss_standard-mb_one-kv_full-untied", {**dims, "b": 1, "s": 1027}
    yield "ckpt_full-loss_standard-mb_one-kv_grouped-tied", {**dims, "b": 1, "k": 3}
    yield "ckpt_full-loss_standard-mb_many-kv_full-untied", {**dims, "b": 17, "d": 256}
    yield "ckpt_full-loss_standard-mb_many-kv_one-untied", {**dims, "k": 1, "L": 11}
    yield "ckpt_full-loss_standard-mb_one-kv_full-tied", {**dims, "b": 1, "d": 160}


def test_every_class_is_shipped() -> None:
    assert shipped_classes(DEFAULT_STACK) == sorted(CLASSES)


@pytest.mark.parametrize(("ending", "dims"), list(unseen_points()))
def test_shipped_profile_equals_a_direct_trace(ending: str, dims: Dims) -> None:
    structure = find_class(ending)
    trace = trace_micro_batch(dims, structure.options)

    found = compare_with_trace(load_program(structure.key), load_table(structure.key), trace, dims)

    assert (found.num_different_events, found.table_peak_bytes) == (0, found.traced_peak_bytes)
    assert found.table_peak_rounded_bytes == found.traced_peak_rounded_bytes
    assert found.num_events > 100 * dims["L"]


@pytest.mark.parametrize("ending", COMPILED)
def test_fresh_compilation_equals_the_shipped_files_and_a_direct_trace(ending: str) -> None:
    structure = find_class(ending)

    trace = partial(trace_micro_batch, options=structure.options)
    program = compile_program(structure.key, structure.points, structure.symbols, running_stack(), trace)

    assert program.to_json() == load_program(structure.key).to_json()
    table = build_table(program)
    assert table.to_json() == load_table(structure.key).to_json()
    dims = held_out_points(structure)[0]
    assert compare_with_trace(program, table, trace_micro_batch(dims, structure.options), dims).exact
