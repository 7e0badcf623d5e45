"""Optimizers that update one parameter after the other: composition of a step from single updates."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from whatfits.estimator.memory.optimizers.frame import Carry, CostFrame, Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import (
    OptimizerEvent,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.units import round_allocation

__all__ = ["PerParameterProgram", "device_bytes"]


class _Update(NamedTuple):
    """One parameter's update seen from outside.

    Peak and change of live bytes, and the number of the carry the next update starts from.
    """

    peak: int
    net: int
    carry: int


@dataclass(slots=True)
class _Evaluated:
    """What a program has worked out: updates by phase, kind of parameter and carry; carries by number."""

    updates: dict[StepPhase, dict[tuple[int, int], _Update]] = field(
        default_factory=lambda: {phase: {} for phase in StepPhase}
    )
    carries: list[Carry] = field(default_factory=lambda: [Carry()])
    carry_numbers: dict[Carry, int] = field(default_factory=lambda: {Carry(): 0})
    peaks: dict[Hashable, int] = field(default_factory=dict)
    """Peaks of steps evaluated as a whole."""

    def number(self, carry: Carry) -> int:
        """The number of a carry, a new one if it is new."""
        number = self.carry_numbers.setdefault(carry, len(self.carries))
        if number == len(self.carries):
            self.carries.append(carry)
        return number


def device_bytes(states: Sequence[StateTensor]) -> int:
    """Bytes on the device of some state tensors, each rounded up to 512."""
    return sum(round_allocation(state.nbytes) for state in states if state.on_device)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerParameterProgram(ABC):
    """Base of the optimizers whose ``step()`` is a loop over parameters.

    Subclasses write one update against a `Frame`. Updates of equal shape, role, phase and carry are evaluated once;
    a step of 300 parameters costs 300 dictionary look-ups.
    """

    creates_all_states_first: ClassVar[bool] = False
    """Whether the first ``step()`` creates every state before it updates anything."""

    param_dtype_bytes: int
    _evaluated: _Evaluated = field(default_factory=_Evaluated, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def local_names(self) -> tuple[str, ...]:
        """Names in ``step()`` that hold temporaries, in the order in which its frame frees them on return."""

    @abstractmethod
    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Persistent state of one parameter after its first step."""

    @abstractmethod
    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Record one parameter's update."""

    @abstractmethod
    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Work of one parameter's steady update, and of its refresh."""

    def shared_states(
        self,
        parameters: Sequence[ParameterTensor],  # noqa: ARG002 (for methods that share state)
    ) -> tuple[StateTensor, ...]:
        """None, unless the method says otherwise."""
        return ()

    def in_order(self, parameters: Sequence[ParameterTensor]) -> Parameters:
        """The parameters in the order in which ``step()`` updates them: as given, unless the method has groups."""
        return Parameters.of(parameters)

    def begin(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """Record what ``step()`` does before its loop."""
        if phase is not StepPhase.first or not self.creates_all_states_first:
            return
        for parameter in parameters:
            for state in self.states(parameter):
                if state.on_device:
                    frame.state(parameter.name, state.name, state.nbytes)

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        """What ``step()`` allocates and frees on the device, in order."""
        frame = Frame()
        parameters = self.in_order(parameters)
        self.begin(frame, parameters, phase)
        for parameter in parameters:
            self.update(frame, parameter, phase)
        frame.leave(self.local_names)
        return frame.events

    def state_bytes(self, parameters: Sequence[ParameterTensor]) -> int:
        """Device bytes of all persistent state, each tensor rounded up to 512."""
        total = device_bytes(self.shared_states(parameters))
        for kind in Parameters.of(parameters).kinds:
            total += kind.occurrences * device_bytes(self.states(kind.example))
        return total

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step above what was there before it, each tensor rounded up to 512.

        peak = max over i of (sum over j < i of net_j) + peak_i, where peak_i and net_i are the highest and the final
        change of live bytes in update i, given the temporaries update i - 1 left bound.

        Source: the definition; equal to walking `events`.
        Assumes: nothing else allocates during ``step()``.
        """
        parameters = self.in_order(parameters)
        creates_first = phase is StepPhase.first and self.creates_all_states_first
        peak = live = self.state_bytes(parameters) if creates_first else 0
        carry = 0
        known = self._evaluated.updates[phase]
        for index, kind in enumerate(parameters.kind_numbers):
            update = known.get((kind, carry))
            if update is None:
                update = known[kind, carry] = self._evaluate(parameters[index], phase, carry)
            peak = max(peak, live + update.peak)
            live += update.net
            carry = update.carry
        return peak

    def update_transient_bytes(self, parameter: ParameterTensor, phase: StepPhase) -> int:
        """`transient_bytes` of a parameter with an optimizer of its own (layer-wise update)."""
        return self.transient_bytes((parameter,), phase)

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        """Sum of the parameters' `update_work`."""
        flops = bytes_moved = svd_work = 0
        interval: int | None = None
        for kind in Parameters.of(parameters).kinds:
            work = self.update_work(kind.example)
            flops += kind.occurrences * work.flops
            bytes_moved += kind.occurrences * work.bytes_moved
            svd_work += kind.occurrences * work.svd_work
            interval = interval or work.refresh_interval
        return StepWork(flops, bytes_moved, svd_work, interval)

    def _evaluate(self, parameter: ParameterTensor, phase: StepPhase, carry: int) -> _Update:
        frame = CostFrame(self._evaluated.carries[carry])
        self.update(frame, parameter, phase)
        return _Update(frame.peak, frame.live, self._evaluated.number(frame.carry()))
