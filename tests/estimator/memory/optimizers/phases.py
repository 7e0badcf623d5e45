"""Events of traced steps and of programs, by phase, in one form."""

from collections import deque
from collections.abc import Hashable, Sequence

import torch

from whatfits.estimator.memory.optimizers import OptimizerProgram, ParameterTensor, StepPhase, number_blocks
from whatfits.profiler.trace.optimizer_step import trace_optimizer_step

__all__ = ["ORDERS", "Event", "outputs_sorted", "program_phases", "traced_phases"]

ORDERS = {
    "a transformer's": ("embedding", "wide", "vector", "tall", "tall", "square", "odd", "vector", "head"),
    "vectors last": ("tall", "wide", "rank above the shorter side", "one row", "vector", "vector of one"),
    "a matrix last": ("vector", "head", "not a multiple of a block", "wide"),
}
Event = tuple[str, int, int]


def traced_phases(optimizer: torch.optim.Optimizer, refresh_step: int) -> dict[StepPhase, list[Event]]:
    """Events of the first, the second and the first refreshing step; -1 for blocks older than the step."""
    steps = [trace_optimizer_step(optimizer) for _ in range(refresh_step + 1)]
    chosen = {StepPhase.first: steps[0], StepPhase.steady: steps[1], StepPhase.refresh: steps[refresh_step]}
    return {phase: [(e.kind, max(e.block, -1), e.nbytes) for e in events] for phase, events in chosen.items()}


def program_phases(
    program: OptimizerProgram,
    parameters: Sequence[ParameterTensor],
    *,
    without_labels: Sequence[str] = (),
    without_owner: str = "",
) -> dict[StepPhase, list[Event]]:
    """The program's events in the trace's form, without what a trace cannot see."""
    phases: dict[StepPhase, list[Event]] = {}
    for phase in StepPhase:
        events = [
            event
            for event in program.events(parameters, phase)
            if event.label not in without_labels
            and not (isinstance(event.key, tuple) and event.key[0] == without_owner)
        ]
        older: dict[Hashable, deque[int]] = {}
        if phase is not StepPhase.first:
            older = {(p.name, state.name): deque([-1]) for p in parameters for state in program.states(p)}
            older |= {("optimizer", state.name): deque([-1]) for state in program.shared_states(parameters)}
        phases[phase] = [(e.kind, e.block, e.nbytes) for e in number_blocks(events, live=older)]
    return phases


def outputs_sorted(events: Sequence[Event]) -> list[Event]:
    """Events with allocations that follow each other in order of size, and blocks numbered anew.

    A trace sees the outputs of one operator in the order of its results; CUDA makes them in another.
    """
    arranged: list[Event] = []
    run: list[Event] = []
    for event in events:
        if event[0] == "alloc":
            run.append(event)
        else:
            arranged += sorted(run, key=lambda e: e[2])
            run = []
            arranged.append(event)
    arranged += sorted(run, key=lambda e: e[2])
    numbers: dict[int, int] = {}
    for kind, block, _ in arranged:
        if kind == "alloc":
            numbers[block] = len(numbers)
    return [(kind, numbers.get(block, -1), nbytes) for kind, block, nbytes in arranged]
