"""Optimizer steps recorded on an H100: the programs' events, CUDA's own scratch included, and their state bytes."""

import pytest

from tests.estimator.memory.optimizers import recordings
from whatfits.estimator.memory.optimizers import (
    OptimizerProgram,
    ParameterTensor,
    StepPhase,
    build_optimizer_program,
)
from whatfits.estimator.memory.optimizers.lomo import AdaLomo, Lomo
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec

DTYPE_BYTES = {"bf16": 2, "fp32": 4}
PHASES = {0: StepPhase.first, 1: StepPhase.steady}


def spec(name: str, implementation: str = "foreach") -> OptimizerSpec:
    return OptimizerSpec(name=OptimizerName(name), implementation=OptimizerImplementation(implementation))


SPECS = {
    "sgd_for_loop": spec("sgd", "for_loop"),
    "sgd_foreach": spec("sgd"),
    "sgdm_foreach": spec("sgdm"),
    "sgdm_fused": spec("sgdm", "fused"),
    "adamw_for_loop": spec("adamw", "for_loop"),
    "adamw_fused": spec("adamw", "fused"),
    "torch:Adafactor": spec("adafactor"),
    "po:Lion": spec("lion"),
    "po:Adan": spec("adan"),
    "po:CAME": spec("came"),
    "po:Lamb": spec("lamb"),
    "schedulefree": spec("schedule_free_adamw"),
    "bnb:Adam8bit": spec("adamw_8bit"),
    "bnb:AdamW8bit": spec("adamw_8bit"),
    "bnb:PagedAdamW": spec("paged_adamw"),
    "bnb:PagedAdamW8bit": spec("paged_adamw_8bit"),
    "ao:AdamW4bit": spec("adamw_4bit"),
    "ao:AdamWFp8": spec("adamw_fp8"),
}
"""Recorded optimizers by the program they are compared with."""
COMPILED = ("ao:AdamW4bit", "ao:AdamWFp8")
FUSED_INTO_BACKWARD = {"po:LOMO": Lomo, "po:AdaLOMO": AdaLomo}
CASES = [(name, precision) for name, precision in recordings.recorded_cases() if name in SPECS]


def program_of(optimizer: OptimizerSpec, precision: str) -> OptimizerProgram:
    return build_optimizer_program(
        optimizer, param_dtype_bytes=DTYPE_BYTES[precision], hidden_size=recordings.HIDDEN
    )


def plain(
    program: OptimizerProgram, parameters: list[ParameterTensor], phase: StepPhase
) -> list[tuple[str, int]]:
    return [(event.kind, event.nbytes) for event in program.events(parameters, phase)]


def test_every_program_has_a_recorded_case() -> None:
    assert {name for name, _ in CASES} == set(SPECS)
    assert {"fp32", "bf16"} == {precision for _, precision in CASES}


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_state_bytes_equal_the_recorded(name: str, precision: str) -> None:
    parameters = recordings.recorded_parameters(name, precision)
    program = program_of(SPECS[name], precision)
    states = [state for p in parameters for state in program.states(p)] + [*program.shared_states(parameters)]

    held = sum(state.nbytes for state in states if state.on_device)

    assert held == recordings.recorded_state_bytes(name, precision)


@pytest.mark.parametrize("step", PHASES)
@pytest.mark.parametrize(("name", "precision"), [case for case in CASES if case[0] not in COMPILED])
def test_events_equal_the_recorded(name: str, precision: str, step: int) -> None:
    """After the step the loop frees the gradients, the loss and the inputs, and allocates nothing."""
    parameters = recordings.recorded_parameters(name, precision)
    recorded = recordings.recorded_step(name, precision, step)

    events = plain(program_of(SPECS[name], precision), parameters, PHASES[step])

    assert recorded[: len(events)] == events
    assert {kind for kind, _ in recorded[len(events) :]} == {"free"}


def peak_and_length(events: list[tuple[str, int]]) -> tuple[int, int]:
    """Highest live bytes until everything allocated is free again, and how many events that takes."""
    live = peak = 0
    for count, (kind, nbytes) in enumerate(events, start=1):
        live += nbytes if kind == "alloc" else -nbytes
        peak = max(peak, live)
        if live == 0:
            return peak, count
    return peak, len(events)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_updates_equal_the_recorded(name: str) -> None:
    """For the 512 x 1376 matrices Inductor chose other kernels: their events differ, their peak is no higher."""
    program = program_of(SPECS[name], "bf16")
    recorded = recordings.recorded_step(name, "bf16", 1)
    for parameter in recordings.recorded_parameters(name, "bf16"):
        expected = plain(program, [parameter], StepPhase.steady)
        length = len(expected)
        if parameter.shape == (recordings.HIDDEN, recordings.FFN):
            peak, length = peak_and_length(recorded)
            assert peak <= peak_and_length(expected)[0]
        else:
            assert recorded[:length] == expected, parameter
        recorded = recorded[length:]
    assert {kind for kind, _ in recorded} == {"free"}


@pytest.mark.parametrize("name", FUSED_INTO_BACKWARD)
def test_updates_fused_into_backward_are_in_the_recorded_pass(name: str) -> None:
    """Each parameter's update is one stretch of the recorded backward pass, the gradient's own free included."""
    program = FUSED_INTO_BACKWARD[name](param_dtype_bytes=2)
    recorded = recordings.recorded_step(name, "bf16", 1, phase="backward")
    for parameter in recordings.recorded_parameters(name, "bf16"):
        update = plain(program, [parameter], StepPhase.steady)
        found = any(recorded[i : i + len(update)] == update for i in range(len(recorded)))
        assert found, parameter
