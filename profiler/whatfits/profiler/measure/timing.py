"""When each phase of each step begins: by CUDA events on a GPU, by the process's clock on a CPU."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import torch

from whatfits.profiler.measure.probes import PhaseCounters

__all__ = ["CpuTimer", "CudaTimer", "StepSeconds", "Timer"]

REST = "rest"
"""The phase between two steps, which no step's time holds."""


class StepSeconds(NamedTuple):
    """Seconds of one step: of each phase it had, micro-batches summed, and of all of it."""

    phases: dict[str, float]
    total: float


class Timer(ABC):
    """A probe that takes the time where a phase begins and does nothing else, so that what it times is undisturbed."""

    def __init__(self) -> None:
        self.phases: list[PhaseCounters] = []
        self._marks: list[Any] = []  # of the subclass's own kind

    @contextmanager
    def recording(self, device: str) -> Iterator[None]:  # noqa: ARG002  (there is one device)
        """Nothing to prepare."""
        yield

    def enter(self, phase: str, *, step: int | None = None) -> None:
        """A new phase begins, of the same step unless told otherwise; `rest` ends a step."""
        self._marks.append(self._now())
        if step is None:
            step = self.phases[-1].step
        self.phases.append(PhaseCounters(step=step, phase=phase, num_events_before=0))

    def stepping(self, *, begins: bool) -> None:
        """Nothing to note: the phases say it."""
        del begins

    def seconds(self) -> dict[int, StepSeconds]:
        """Every complete step by its number. On a GPU this waits for all of them, once."""
        self._finish()
        ended = {phase.step for phase in self.phases if phase.phase == REST}
        found: dict[int, dict[str, float]] = {}
        for (phase, _), (mark, following) in zip(pairwise(self.phases), pairwise(self._marks), strict=True):
            if phase.step in ended and phase.phase != REST:
                of_step = found.setdefault(phase.step, {})
                of_step[phase.phase] = of_step.get(phase.phase, 0.0) + self._between(mark, following)
        return {step: StepSeconds(phases, sum(phases.values())) for step, phases in found.items()}

    @abstractmethod
    def _now(self) -> Any:  # a mark of the subclass's own kind
        ...

    @abstractmethod
    def _between(self, mark: Any, following: Any) -> float: ...

    @abstractmethod
    def _finish(self) -> None: ...


class CpuTimer(Timer):
    """Marks are readings of the clock."""

    def _now(self) -> float:
        return perf_counter()

    def _between(self, mark: float, following: float) -> float:
        return following - mark

    def _finish(self) -> None:
        pass


class CudaTimer(Timer):
    """Marks are events on the current stream, which the GPU times as it comes to them."""

    def _now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, mark: torch.cuda.Event, following: torch.cuda.Event) -> float:
        milliseconds: float = mark.elapsed_time(following)
        return milliseconds / 1000

    def _finish(self) -> None:
        torch.cuda.synchronize()
