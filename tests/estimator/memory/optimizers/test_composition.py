"""The fast composition of a step equals walking its events, and the pieces agree with each other."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.memory.optimizers import (
    OPTIMIZERS,
    OptimizerEvent,
    OptimizerProgram,
    ParameterRole,
    Parameters,
    ParameterTensor,
    StepPhase,
    build_optimizer_program,
    number_blocks,
)
from whatfits.estimator.memory.optimizers.program import GRADIENT
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec

SPECS = [
    OptimizerSpec(name=name, implementation=implementation, rank=rank)
    for name in map(OptimizerName, OPTIMIZERS)
    for implementation in (OPTIMIZERS[name].implementations or (OptimizerImplementation.FOREACH,))
    for rank in ((None, 3, 200) if OPTIMIZERS[name].has_rank else (None,))
]

matrices = st.tuples(st.integers(1, 300), st.integers(1, 300))
parameter_lists = st.lists(
    st.one_of(
        st.tuples(matrices, st.sampled_from([ParameterRole.linear, ParameterRole.linear, ParameterRole.embedding])),
        st.tuples(st.tuples(st.integers(1, 5000)), st.just(ParameterRole.vector)),
    ),
    max_size=8,
).map(
    lambda drawn: [
        ParameterTensor(name=f"p{index}", shape=shape, role=role)
        for index, (shape, role) in enumerate(drawn)
    ]
)  # fmt: skip


def walk(events: Sequence[OptimizerEvent]) -> tuple[int, int]:
    """Peak and end of live bytes, each tensor rounded up to 512; gradients freed count until the end."""
    live = peak = gradients = 0
    for event in events:
        rounded = -(-event.nbytes // 512) * 512
        live += rounded if event.kind == "alloc" else -rounded
        gradients += rounded if frees_gradient(event) else 0
        peak = max(peak, live)
    return peak, live + gradients


def frees_gradient(event: OptimizerEvent) -> bool:
    """Whether an update frees the gradient itself, which the backward pass made."""
    return isinstance(event.key, tuple) and event.key[0] == GRADIENT


def program_of(spec: OptimizerSpec, dtype_bytes: int) -> OptimizerProgram:
    return build_optimizer_program(spec, param_dtype_bytes=dtype_bytes, hidden_size=64)


@given(
    parameters=parameter_lists, spec=st.sampled_from(SPECS), phase=st.sampled_from(StepPhase), s=st.sampled_from([2, 4])
)  # fmt: skip
def test_transient_bytes_equal_the_walk_over_events(
    parameters: list[ParameterTensor], spec: OptimizerSpec, phase: StepPhase, s: int
) -> None:
    program = program_of(spec, s)

    peak, end = walk(program.events(parameters, phase))

    assert program.transient_bytes(parameters, phase) == peak
    assert end == (program.state_bytes(parameters) if phase is StepPhase.first else 0)


@given(parameters=parameter_lists, spec=st.sampled_from(SPECS), s=st.sampled_from([2, 4]))
def test_first_step_allocates_exactly_the_states(
    parameters: list[ParameterTensor], spec: OptimizerSpec, s: int
) -> None:
    program = program_of(spec, s)
    expected = {
        (parameter.name, state.name): state.nbytes
        for parameter in parameters
        for state in program.states(parameter)
        if state.on_device
    } | {("optimizer", state.name): state.nbytes for state in program.shared_states(parameters)}

    held: dict[object, int] = {}
    for event in program.events(parameters, StepPhase.first):
        if event.kind == "alloc":
            held[event.key] = event.nbytes
        elif not frees_gradient(event):
            del held[event.key]

    assert held == expected


@given(parameters=parameter_lists, spec=st.sampled_from(SPECS), phase=st.sampled_from(StepPhase))
def test_every_block_is_freed_once_or_kept(
    parameters: list[ParameterTensor], spec: OptimizerSpec, phase: StepPhase
) -> None:
    program = program_of(spec, 2)
    numbered = number_blocks(program.events(parameters, phase))
    allocated = [e.block for e in numbered if e.kind == "alloc"]
    freed = [e.block for e in numbered if e.kind == "free"]

    assert len(set(allocated)) == len(allocated)
    assert len(set(freed) - {-1}) == len([block for block in freed if block != -1])
    assert set(freed) - {-1} <= set(allocated)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name} {spec.implementation} {spec.rank}")
@pytest.mark.parametrize("phase", StepPhase)
@pytest.mark.parametrize("role", [ParameterRole.linear, ParameterRole.embedding])
def test_layerwise_update_is_a_step_of_one_parameter(
    spec: OptimizerSpec, phase: StepPhase, role: ParameterRole
) -> None:
    parameter = ParameterTensor(name="w", shape=(200, 120), role=role)
    program = program_of(spec, 2)

    assert program.update_transient_bytes(parameter, phase) == walk(program.events([parameter], phase))[0]


NOT_MONOTONE = {
    OptimizerName.Q_GALORE,  # as the next
    OptimizerName.GALORE_ADAMW_8BIT,  # below 4096 projected elements: fp32 states, larger than 8-bit ones above
    OptimizerName.PAGED_ADAMW,  # from 100,000 elements on: not on the device
    OptimizerName.PAGED_ADAMW_8BIT,
    OptimizerName.ADAMW_4BIT,  # not of whole blocks: states in the parameter's dtype
    OptimizerName.ADAMW_FP8,
    OptimizerName.FRUGAL,  # one rank is a smaller density of larger matrices
}


@given(
    spec=st.sampled_from([spec for spec in SPECS if spec.name not in NOT_MONOTONE]),
    rows=st.integers(1, 400),
    columns=st.integers(1, 400),
    s=st.sampled_from([2, 4]),
)
def test_a_larger_matrix_never_needs_less(spec: OptimizerSpec, rows: int, columns: int, s: int) -> None:
    program = program_of(spec, s)
    small = [ParameterTensor(name="w", shape=(rows, columns), role=ParameterRole.linear)]
    # So much larger that 8-bit states of more than 4096 elements outweigh fp32 states of fewer.
    large = [ParameterTensor(name="w", shape=(rows + 200, columns + 200), role=ParameterRole.linear)]

    assert program.state_bytes(large) >= program.state_bytes(small)
    for phase in StepPhase:
        assert program.transient_bytes(large, phase) >= program.transient_bytes(small, phase)


def test_a_replaced_state_frees_the_older_block() -> None:
    events = [
        OptimizerEvent("alloc", ("w", "projection"), 4, "projection"),
        OptimizerEvent("alloc", ("w", "projection"), 4, "projection"),
        OptimizerEvent("free", ("w", "projection"), 4, "projection"),
        OptimizerEvent("free", ("w", "other"), 4, "other"),
    ]

    assert [event.block for event in number_blocks(events, first_block=7)] == [7, 8, 7, -1]


@given(parameters=parameter_lists)
def test_kinds_count_every_parameter_once(parameters: list[ParameterTensor]) -> None:
    counted = Parameters(parameters)

    assert sum(kind.occurrences for kind in counted.kinds) == len(parameters)
    assert len({(kind.example.shape, kind.example.role) for kind in counted.kinds}) == len(counted.kinds)
    assert Parameters.of(counted) is counted
