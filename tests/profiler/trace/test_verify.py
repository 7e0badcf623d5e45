"""The comparison of a profile with a trace finds what differs: a proof that can fail."""

from dataclasses import replace

import numpy as np
import pytest

from whatfits.estimator.profile import EventProgram, SizeExpression, Token, build_table, load_program
from whatfits.profiler.trace.classes import structure_class
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import Comparison, compare_with_trace

DIMS = {"L": 6, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 2, "d": 24, "V": 701}
STRUCTURE = structure_class(StepOptions(), micro_batch="many", kv_heads="grouped")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return trace_micro_batch(DIMS, StepOptions())


@pytest.fixture(scope="module")
def program() -> EventProgram:
    return load_program(STRUCTURE.key)


def compare(program: EventProgram, trace: Trace) -> Comparison:
    return compare_with_trace(program, build_table(program), trace, DIMS)


def test_the_untouched_profile_is_exact(program: EventProgram, trace: Trace) -> None:
    assert compare(program, trace).exact


def test_one_wrong_size_is_found(program: EventProgram, trace: Trace) -> None:
    logits = SizeExpression(((4, (("b", 1), ("s", 1), ("V", 1))),))
    index = program.sizes.index(logits)
    wrong = SizeExpression(((4, (("b", 1), ("s", 1), ("V", 1))), (8, (("b", 1),))))
    sizes = (*program.sizes[:index], wrong, *program.sizes[index + 1 :])

    found = compare(replace(program, sizes=sizes), trace)

    assert found.num_different_events > 0
    assert found.table_peak_bytes > found.traced_peak_bytes
    assert not found.exact


def test_one_token_with_another_tokens_size_is_found(program: EventProgram, trace: Trace) -> None:
    forward = program.parts["forward"]
    body = forward.body.copy()
    row = int(np.flatnonzero(body[:, 0] == Token.ALLOC)[0])
    body[row, 1] = (body[row, 1] + 1) % len(program.sizes)
    parts = {**program.parts, "forward": replace(forward, body=body)}

    assert (
        compare(replace(program, parts=parts), trace).num_different_events >= DIMS["L"] - program.base_layers
    )


def test_a_missing_token_and_an_exchanged_free_are_found(program: EventProgram, trace: Trace) -> None:
    end = program.parts["end"]
    frees = np.flatnonzero(end.prefix[:, 0] == Token.FREE)
    tail = np.flatnonzero(end.suffix[:, 0] == Token.FREE)
    segment, rows = ("prefix", frees) if len(frees) >= 2 else ("suffix", tail)
    assert len(rows) >= 2
    swapped = getattr(end, segment).copy()
    swapped[rows[[0, 1]]] = swapped[rows[[1, 0]]]
    shorter = getattr(end, segment)[:-1]

    for changed in (swapped, shorter):
        parts = {**program.parts, "end": replace(end, **{segment: changed})}
        assert not compare(replace(program, parts=parts), trace).exact
