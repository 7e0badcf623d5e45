"""Shipped profiles against direct traces at points no profile was built from, and against a fresh compilation.

The second stack is traced by the interpreter that WHATFITS_STACK_PYTHON names; `make profiles` makes one.
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial

import pytest

from whatfits.estimator.profile import DEFAULT_STACK, build_table, load_program, load_table
from whatfits.estimator.profile.store import shipped_classes, shipped_stacks
from whatfits.profiler.trace.child_process import TraceChild
from whatfits.profiler.trace.classes import CUDNN_FIRST, class_at, shipped_structures
from whatfits.profiler.trace.compile import compile_program
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import AdapterOptions, Dims, StepOptions
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace

SECOND_STACK = {"torch": "2.13", "transformers": "4.57"}
PYTHON = os.environ.get("WHATFITS_STACK_PYTHON")
default_stack = pytest.mark.skipif(
    running_stack() != DEFAULT_STACK,
    reason=f"the shipped profiles are of {DEFAULT_STACK}, installed is {running_stack()}",
)
Options = Mapping[str, object]
DIMS = {"L": 8, "b": 3, "s": 129, "h": 168, "i": 461, "a": 6, "k": 6, "d": 24, "V": 1013}
CUDNN = {"kernels": CUDNN_FIRST}
TIED = {"tie_embeddings": True}
FULL = {"checkpointing": "full"}
MIXED = {"precision": "bf16_mixed"}
QWEN = {"architecture": "Qwen2ForCausalLM"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = {"adapter": AdapterOptions(targets=ATTENTION)}
QLORA = {"adapter": AdapterOptions(targets=(*ATTENTION, "gate_proj", "up_proj", "down_proj"), quantized=True)}


def unseen_points() -> Iterator[tuple[Options, Dims]]:
    """One point for each value of everything that makes a class, with odd dims and depths."""
    yield {}, DIMS
    yield TIED, {**DIMS, "L": 4, "s": 2}
    yield {}, {**DIMS, "k": 2, "d": 136}
    yield TIED, {**DIMS, "k": 1, "L": 13}
    yield {}, {**DIMS, "b": 1, "s": 1027}
    yield {**FULL, **TIED}, {**DIMS, "b": 1, "k": 3}
    yield FULL, {**DIMS, "b": 17, "d": 256}
    yield FULL, {**DIMS, "k": 1, "L": 11}
    yield {**FULL, **TIED}, {**DIMS, "b": 1, "d": 160}
    yield {"precision": "fp32"}, {**DIMS, "k": 2, "s": 512}
    yield {"precision": "fp32", **FULL}, {**DIMS, "s": 1031}
    yield {"precision": "fp16_mixed", **TIED}, {**DIMS, "b": 1, "k": 2}
    yield {**MIXED, **FULL}, {**DIMS, "L": 11, "k": 3}
    yield {**MIXED, "attention": "eager"}, {**DIMS, "s": 264}
    yield {"attention": "eager", **FULL}, {**DIMS, "k": 1}
    yield CUDNN, {**DIMS, "k": 2, "s": 640}
    yield {**CUDNN, **MIXED, **FULL}, {**DIMS, "b": 1, "d": 64}
    yield {**QWEN, **FULL}, {**DIMS, "k": 2}
    yield {**QWEN, **MIXED, **CUDNN}, DIMS
    yield {**LORA, **MIXED, **FULL}, {**DIMS, "k": 3, "r": 6}
    yield {**QLORA, **CUDNN, **TIED}, {**DIMS, "b": 1, "k": 2, "r": 16}
    yield {}, {**DIMS, "b": 2, "s": 8192, "V": 30011}


def unseen_points_of_the_second_stack() -> Iterator[tuple[Options, Dims]]:
    """Masks are built in every step there, and padded where the sequence is no multiple of 8."""
    for seq_len in (512, 1027):
        yield {}, {**DIMS, "k": 2, "s": seq_len}
        yield {**MIXED, **FULL}, {**DIMS, "b": 1, "s": seq_len}
        yield {"precision": "fp32", **TIED}, {**DIMS, "s": seq_len}
        yield {**CUDNN, **FULL}, {**DIMS, "k": 1, "s": seq_len}
        yield {"attention": "eager"}, {**DIMS, "k": 3, "s": seq_len}
        yield {**QWEN, **MIXED}, {**DIMS, "s": seq_len}
        yield {**LORA, **FULL}, {**DIMS, "k": 2, "s": seq_len, "r": 6}


def require_equal(options: StepOptions, dims: Dims, stack: dict[str, str], trace: Trace) -> None:
    """Every event of the shipped program and the peak of the shipped table are the trace's."""
    key = class_at(options, dims).key

    found = compare_with_trace(load_program(key, stack), load_table(key, stack), trace, dims)

    assert (found.num_different_events, found.table_peak_bytes) == (0, found.traced_peak_bytes)
    assert found.table_peak_rounded_bytes == found.traced_peak_rounded_bytes
    assert found.num_events > 100 * dims["L"]


def test_every_class_is_shipped_for_both_stacks() -> None:
    expected = {structure.key.slug for structure in shipped_structures()}

    assert shipped_stacks() == [SECOND_STACK, DEFAULT_STACK]
    for stack in shipped_stacks():
        assert {slug.removesuffix("-s_other") for slug in shipped_classes(stack)} == expected


@default_stack
@pytest.mark.parametrize(("options", "dims"), list(unseen_points()))
def test_shipped_profile_equals_a_direct_trace(options: Options, dims: Dims) -> None:
    chosen = StepOptions(**options)  # type: ignore[arg-type]  # values as the names above say

    require_equal(chosen, dims, DEFAULT_STACK, trace_micro_batch(dims, chosen))


@pytest.mark.skipif(PYTHON is None, reason="WHATFITS_STACK_PYTHON names no interpreter of the second stack")
def test_profiles_of_the_second_stack_equal_direct_traces() -> None:
    with TraceChild(str(PYTHON)) as child:
        assert child.stack == SECOND_STACK
        for options, dims in unseen_points_of_the_second_stack():
            chosen = StepOptions(**options)  # type: ignore[arg-type]  # as above
            require_equal(chosen, dims, SECOND_STACK, child.trace(dims, chosen))


@default_stack
@pytest.mark.parametrize("options", [{}, {**MIXED, **FULL, **TIED}], ids=["plain", "mixed"])
def test_fresh_compilation_equals_the_shipped_files_and_a_direct_trace(options: Options) -> None:
    chosen = StepOptions(**options)  # type: ignore[arg-type]  # as above
    structure = class_at(chosen, {**DIMS, "s": 128})
    trace = partial(trace_micro_batch, options=chosen)

    program = compile_program(structure, running_stack(), trace)

    assert program.to_json() == load_program(structure.key).to_json()
    table = build_table(program)
    assert table.to_json() == load_table(structure.key).to_json()
    dims = structure.held_out[0]
    assert compare_with_trace(program, table, trace(dims), dims).exact
