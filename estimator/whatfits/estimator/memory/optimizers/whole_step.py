"""Optimizers whose ``step()`` is more than one loop over parameters: recorded as a whole, evaluated once."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Carry, CostFrame, Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import OptimizerEvent, ParameterTensor, StepPhase

__all__ = ["WholeStepProgram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStepProgram(PerParameterProgram):
    """Base of the optimizers that treat groups of parameters one after the other, each in its own way."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: `record_step` frees what it binds."""
        return ()

    @abstractmethod
    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """Record the whole step."""

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """A step of one parameter."""
        self.record_step(frame, Parameters.of((parameter,)), phase)

    def events(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> list[OptimizerEvent]:
        """What ``step()`` allocates and frees on the device, in order."""
        frame = Frame()
        self.record_step(frame, Parameters.of(parameters), phase)
        return frame.events

    def transient_bytes(self, parameters: Sequence[ParameterTensor], phase: StepPhase) -> int:
        """Peak of the step above what was there before it, by walking it once for each list of shapes."""
        parameters = Parameters.of(parameters)
        key = (parameters.kind_numbers, phase)
        peak = self._evaluated.peaks.get(key)
        if peak is None:
            frame = CostFrame(Carry())
            self.record_step(frame, parameters, phase)
            peak = self._evaluated.peaks[key] = frame.peak
        return peak
