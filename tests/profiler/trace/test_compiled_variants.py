"""Classes with adapters, other losses and selective checkpointing compile, and equal direct traces where none was fitted."""

import pytest

from whatfits.estimator.profile import build_table
from whatfits.estimator.profile.program import EventProgram
from whatfits.profiler.trace.classes import structure_class
from whatfits.profiler.trace.compile import compile_program
from whatfits.profiler.trace.options import AdapterOptions, StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace


@pytest.mark.parametrize(
    ("options", "sequence"),
    [
        pytest.param(
            StepOptions(checkpointing="every_2", loss="chunked", adapter=AdapterOptions(dora=True)),
            "other",
            marks=pytest.mark.slow,
        ),
        (
            StepOptions(checkpointing="ops", loss="fused_linear", adapter=AdapterOptions(quantized=True)),
            "eights",
        ),
    ],
    ids=["every_2-chunked-dora", "ops-fused_linear-qlora"],
)
def test_a_compiled_class_equals_direct_traces(options: StepOptions, sequence: str) -> None:
    structure = structure_class(options, micro_batch="many", kv_heads="grouped", sequence=sequence)

    program = compile_program(structure, {}, lambda dims: trace_micro_batch(dims, options))

    program = EventProgram.from_json(program.to_json())
    table = build_table(program)
    dims = structure.held_out[0]
    assert compare_with_trace(program, table, trace_micro_batch(dims, options), dims).exact
    if options.checkpointing == "every_2":
        with pytest.raises(
            ValueError, match="not 4 and a multiple of the 2 layers after which every_2 repeats"
        ):
            compare_with_trace(program, table, trace_micro_batch({**dims, "L": 7}, options), {**dims, "L": 7})
