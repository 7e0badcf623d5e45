"""What watches a training run: the caching allocator's own history on CUDA, a dispatch mode on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor

from whatfits.profiler.measure.allocator_history import AllocatorTrace, start_recording, stop_recording
from whatfits.profiler.measure.cases import NUM_STEPS
from whatfits.profiler.measure.driver import driver_used_bytes, nvml_used_bytes
from whatfits.profiler.measure.events import EventList
from whatfits.profiler.trace.cuda_differences import in_place_on_device
from whatfits.profiler.trace.events import Alloc, Free, Mark, Phase, Token
from whatfits.profiler.trace.storages import StorageRecorder

__all__ = ["CpuProbe", "CudaProbe", "PhaseCounters", "Probe"]

_HOST_SCALAR_BYTES = 4


@dataclass(slots=True, kw_only=True)
class PhaseCounters:
    """One phase of one step: how many events came before it, and the counters at its end."""

    step: int
    phase: str
    num_events_before: int
    counters: dict[str, int] = field(default_factory=dict)


class Probe(Protocol):
    """Told by the loop where it stands."""

    phases: list[PhaseCounters]

    def recording(self, device: str) -> AbstractContextManager[None]:
        """Record while active."""
        ...

    def enter(self, phase: str, *, step: int | None = None) -> None:
        """A new phase begins, of the same step unless told otherwise."""
        ...

    def stepping(self, *, begins: bool) -> None:
        """An optimizer's `step()` begins or ends; one may lie in another."""
        ...


class _Phases:
    """Keeps the list of phases; a subclass counts."""

    def __init__(self) -> None:
        self.phases: list[PhaseCounters] = []

    def enter(self, phase: str, *, step: int | None = None) -> None:
        """Close the phase before and open the next."""
        num_events, counters = self._read()
        if self.phases:
            self.phases[-1].counters = counters
            step = self.phases[-1].step if step is None else step
        self.phases.append(PhaseCounters(step=step or 0, phase=phase, num_events_before=num_events))

    def _read(self) -> tuple[int, dict[str, int]]:
        raise NotImplementedError

    def label(self, events: EventList, before: Callable[[int], int] = lambda index: index) -> None:
        """Mark where sections start and give each event without a label its phase."""
        edges = [before(p.num_events_before) for p in self.phases]
        first_of = {p.step: edge for p, edge in zip(reversed(self.phases), reversed(edges), strict=True)}
        events.starts = [0, *(first_of[step] for step in range(NUM_STEPS) if step in first_of)]
        events.cut(edges[-1])  # what comes after the last step is the run's taking apart
        for phase, start, stop in zip(self.phases, edges, edges[1:], strict=False):
            for index in range(start, stop):
                events.labels[index] = f"{phase.phase} {events.labels[index]}".strip()


_STATS = {
    "allocated_bytes": "allocated_bytes.all.current",
    "reserved_bytes": "reserved_bytes.all.current",
    "requested_bytes": "requested_bytes.all.current",
    "peak_allocated_bytes": "allocated_bytes.all.peak",
    "peak_reserved_bytes": "reserved_bytes.all.peak",
    "peak_requested_bytes": "requested_bytes.all.peak",
    "peak_active_bytes": "active_bytes.all.peak",
    "num_segments": "segment.all.current",
    "num_alloc_retries": "num_alloc_retries",
    "num_ooms": "num_ooms",
}
"""Our names for entries of torch.cuda.memory_stats()."""


class CudaProbe(_Phases):
    """Reads the allocator's counters and, unless told otherwise, its history."""

    def __init__(self, *, keeps_history: bool = True) -> None:
        super().__init__()
        self._keeps_history = keeps_history
        self.driver: dict[str, int | None] = {}
        self.trace = AllocatorTrace()

    @contextmanager
    def recording(self, device: str) -> Iterator[None]:  # noqa: ARG002  (there is one CUDA device)
        """Record the allocator's history, and what the driver has in use round the context and the first tensor."""
        self.driver["nvml_used_before_context"] = nvml_used_bytes()
        torch.cuda.init()
        self.driver["cuda_used_after_context"] = driver_used_bytes()
        self.driver["nvml_used_after_context"] = nvml_used_bytes()
        if self._keeps_history:
            start_recording()
        try:
            yield
        finally:
            torch.cuda.synchronize()
            self.driver["cuda_used_at_end"] = driver_used_bytes()
            self.driver["nvml_used_at_end"] = nvml_used_bytes()
            self.driver["reserved_at_end"] = torch.cuda.memory_reserved()
            if self._keeps_history:
                self.trace = stop_recording(torch.cuda.current_device())

    def stepping(self, *, begins: bool) -> None:
        """Nothing to note."""

    def _read(self) -> tuple[int, dict[str, int]]:
        stats = torch.cuda.memory_stats()
        counters = {name: stats.get(key, 0) for name, key in _STATS.items()}
        counters["cuda_used_bytes"] = driver_used_bytes()
        torch.cuda.reset_peak_memory_stats()
        num_events = stats.get("allocation.all.allocated", 0) + stats.get("allocation.all.freed", 0)
        return num_events, counters

    def events(self) -> EventList:
        """The recorded allocations and frees, in sections."""
        events = self.trace.events()
        self.label(events)
        return events


class CappedRecorder(StorageRecorder):
    """Records what real kernels allocate on the host; as if there were only so much memory, where a cap is given."""

    def __init__(self, memory_cap_bytes: int | None, current_module: Callable[[], str]) -> None:
        super().__init__(
            device_type="cpu",
            current_module=current_module,
            temporaries=lambda *_: [],
            in_place=in_place_on_device,
            scalar_answer=None,
        )
        self._cap = memory_cap_bytes
        self._live_bytes = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # the signature is torch's
        """Let tensors made of tensors (sharded, quantised) do an op by ops on what they are made of, which come here."""
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _record(self, tensor: Any, op: str) -> None:
        """Shapes of sharded tensors are worked out on tensors that have no memory."""
        if not isinstance(tensor, FakeTensor):
            super()._record(tensor, op)

    def _new_block(self, nbytes: int, op: str, *, internal: bool, formula: tuple[Any, ...] = ()) -> int:
        if self._cap is not None and self._live_bytes + nbytes > self._cap:
            raise MemoryError(
                f"{op} wants {nbytes} bytes more than the {self._live_bytes} that are live; "
                f"memory_cap_bytes is {self._cap}"
            )
        block = super()._new_block(nbytes, op, internal=internal, formula=formula)
        self._live_bytes += nbytes
        self._sizes[block] = nbytes
        return block

    def _free(self, key: int, block: int) -> None:
        super()._free(key, block)
        self._live_bytes -= self._sizes.pop(block, 0)


_RECORDER_PHASES: dict[str, Phase] = {"forward": "forward", "loss": "loss", "backward": "backward"}


class CpuProbe(_Phases):
    """Records tensor storages through the tracer's dispatch mode while real kernels run."""

    def __init__(self, *, memory_cap_bytes: int | None = None) -> None:
        super().__init__()
        self._optimizer_depth = 0
        self._updates = False
        self.recorder = CappedRecorder(memory_cap_bytes, self._module)

    @contextmanager
    def recording(self, device: str) -> Iterator[None]:  # noqa: ARG002  (there is one CPU)
        """Record storages."""
        with self.recorder:
            yield

    def enter(self, phase: str, *, step: int | None = None) -> None:
        """Tell the recorder too."""
        super().enter(phase, step=step)
        self._updates = phase == "optimizer_step"
        self.recorder.phase = _RECORDER_PHASES.get(phase, "end")

    def _module(self) -> str:
        """Whether the update allocates: the optimizer's step, also within backward, or what stands round it."""
        return "optimizer" if self._optimizer_depth or self._updates else ""

    def stepping(self, *, begins: bool) -> None:
        """Allocations between are the optimizer's."""
        self._optimizer_depth += 1 if begins else -1

    def _read(self) -> tuple[int, dict[str, int]]:
        return len(self.recorder.tokens), {}

    def events(self) -> EventList:
        """The recorded storages, in sections, without the optimizer's scalars: on CUDA those stay on the host."""
        tokens = self.recorder.tokens
        events, before = events_from_tokens(tokens)
        self.label(events, before=before.__getitem__)
        self._add_live_bytes(events, before)
        return events

    def _add_live_bytes(self, events: EventList, before: list[int]) -> None:
        live = events.live_bytes()
        edges = [before[p.num_events_before] for p in self.phases]
        for phase, start, stop in zip(self.phases, edges, edges[1:], strict=False):
            phase.counters = {"peak_requested_bytes": max(live[start:stop], default=0)}


def events_from_tokens(tokens: list[Token]) -> tuple[EventList, list[int]]:
    """Events of recorded tokens, and for each number of tokens the number of events among them."""
    events, before, sizes = EventList(), [0], dict[int, int]()
    for token in tokens:
        if isinstance(token, Alloc) and not _is_host_scalar(token):
            sizes[token.block] = token.nbytes
            events.add(token.nbytes, token.block, token.op)
        elif isinstance(token, Free) and token.block in sizes:
            events.add(-sizes[token.block], token.block, "")
        else:
            assert isinstance(token, Alloc | Free | Mark)
        before.append(len(events))
    return events, before


def _is_host_scalar(token: Alloc) -> bool:
    return token.module == "optimizer" and token.nbytes == _HOST_SCALAR_BYTES
