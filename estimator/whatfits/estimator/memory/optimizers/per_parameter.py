"""Optimizers that update one parameter after the other: composition of a step from single updates."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from whatfits.estimator.memory.optimizers.frame import Carry, Frame, rounded_peak_and_net
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
    """One parameter's update seen from outside: peak and change of live bytes, and what the next one starts from."""

    peak: int
    net: int
    carry: Carry


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
    _updates: dict[Hashable, _Update] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        self.begin(frame, parameters, phase)
        for parameter in parameters:
            self.update(frame, parameter, phase)
        frame.leave(self.local_names)
        return frame.events

    def state_bytes(self, parameters: Sequence[ParameterTensor]) -> int:
        """Device bytes of all persistent state, each tensor rounded up to 512."""
        total = device_bytes(self.shared_states(parameters))
        known: dict[Hashable, int] = {}
        for parameter in parameters:
            key = (parameter.shape, parameter.role)
            if key not in known:
                known[key] = device_bytes(self.states(parameter))
            total += known[key]
        return total

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step above what was there before it, each tensor rounded up to 512.

        peak = max over i of (sum over j < i of net_j) + peak_i, where peak_i and net_i are the highest and the final
        change of live bytes in update i, given the temporaries update i - 1 left bound.

        Source: the definition; equal to walking `events`.
        Assumes: nothing else allocates during ``step()``.
        """
        frame = Frame()
        self.begin(frame, parameters, phase)
        peak, live = rounded_peak_and_net(frame.events)
        carry = frame.carry()
        for parameter in parameters:
            update = self._update_once(parameter, phase, carry)
            peak = max(peak, live + update.peak)
            live += update.net
            carry = update.carry
        return peak

    def update_transient_bytes(self, parameter: ParameterTensor, phase: StepPhase) -> int:
        """`transient_bytes` of a parameter with an optimizer of its own (layer-wise update)."""
        return self.transient_bytes((parameter,), phase)

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        """Sum of the parameters' `update_work`."""
        known: dict[Hashable, StepWork] = {}
        flops = bytes_moved = svd_work = 0
        interval: int | None = None
        for parameter in parameters:
            key = (parameter.shape, parameter.role)
            work = known.get(key) or known.setdefault(key, self.update_work(parameter))
            flops += work.flops
            bytes_moved += work.bytes_moved
            svd_work += work.svd_work
            interval = interval or work.refresh_interval
        return StepWork(flops, bytes_moved, svd_work, interval)

    def _update_once(self, parameter: ParameterTensor, phase: StepPhase, carry: Carry) -> _Update:
        key = (parameter.shape, parameter.role, phase, carry)
        known = self._updates.get(key)
        if known is None:
            frame = Frame(carry)
            self.update(frame, parameter, phase)
            peak, net = rounded_peak_and_net(frame.events)
            known = self._updates[key] = _Update(peak, net, frame.carry())
        return known
