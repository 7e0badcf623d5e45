"""Optimizers whose ``step()`` runs each operator over all parameters at once, on lists of tensors."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from whatfits.estimator.memory.optimizers.frame import Block, Carry, CostFrame, Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    OptimizerEvent,
    ParameterTensor,
    StepPhase,
)
from whatfits.estimator.units import round_allocation

__all__ = ["ListProgram", "OneListProgram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListProgram(PerParameterProgram):
    """Base of the multi-tensor steps; the first creates every state before anything is updated."""

    creates_all_states_first: ClassVar[bool] = True

    _peaks: dict[tuple[tuple[int, ...], bool], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: lists go with the function that makes them."""
        return ()

    @abstractmethod
    def record_lists(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """Record the step of all parameters, after the states are there."""

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """A list of one."""
        self.record_lists(frame, (parameter,), phase)

    def temporaries(self, frame: Frame, parameters: Sequence[ParameterTensor], label: str) -> list[Block]:
        """A list of one temporary of each parameter's size."""
        return [frame.temporary(p.numel * self.param_dtype_bytes, label) for p in parameters]

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        """What ``step()`` allocates and frees on the device, in order."""
        frame = Frame()
        self._record(frame, parameters, phase)
        return frame.events

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step above what was there before it, by walking its events once per list of shapes."""
        key = (Parameters.of(parameters).kind_numbers, phase is StepPhase.first)
        if key not in self._peaks:
            frame = CostFrame(Carry())
            self._record(frame, parameters, phase)
            self._peaks[key] = frame.peak
        return self._peaks[key]

    def _record(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        self.begin(frame, parameters, phase)
        if parameters:
            self.record_lists(frame, parameters, phase)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneListProgram(ListProgram):
    """A step whose only temporaries are one list with a tensor of each parameter's size."""

    list_name: ClassVar[str] = "updates"

    def record_lists(
        self,
        frame: Frame,
        parameters: Sequence[ParameterTensor],
        phase: StepPhase,  # noqa: ARG002 (every step is alike)
    ) -> None:
        """A list frees its last element first."""
        frame.free(*reversed(self.temporaries(frame, parameters, self.list_name)))

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step: one more copy of all parameters, and in the first step the state.

        peak = sum over parameters of round512(e s), + sum of round512(state) in the first step.

        Source: the definition; equal to walking `events`.
        Assumes: all parameters of one dtype on one device, which torch groups together.
        """
        parameters = Parameters.of(parameters)
        copies = sum(
            kind.occurrences * round_allocation(kind.example.numel * self.param_dtype_bytes)
            for kind in parameters.kinds
        )
        return copies + (self.state_bytes(parameters) if phase is StepPhase.first else 0)
