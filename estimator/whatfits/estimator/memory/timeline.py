"""Every allocation and free of a training run's first three steps, in order, for the allocator replay.

Weights and buffers, DDP's buckets, then three steps: the first creates the optimizer's states, the second is an
ordinary one, the third refreshes projections where the method has any. Reserved memory no longer changes after that.
Of accumulated micro-batches the first three are written: from the second on each does what the one before it did.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.device import cublas_workspace_bytes
from whatfits.estimator.memory.loop import (
    MASTER_BYTES,
    clipping_events,
    drop_found_inf_events,
    scaler_state_events,
    unscaling_events,
)
from whatfits.estimator.memory.optimizers import GRADIENT, OptimizerEvent, StepPhase
from whatfits.estimator.memory.peak import Gradients
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.replay_events import ALLOC, FREE, ReplayEvents
from whatfits.estimator.profile import EventProgram, Token, expand
from whatfits.estimator.specs import PeakPhase

__all__ = [
    "CATEGORIES",
    "OPTIMIZER_MODULE",
    "STEP_PHASES",
    "Origin",
    "Timeline",
    "build_timeline",
    "micro_batch_timeline",
]

CATEGORIES = (
    "weights",
    "master_weights",
    "optimizer_states",
    "gradients",
    "activations",
    "logits_and_loss",
    "temporaries",
    "communication_buffers",
    "workspace",
)
_LARGEST_ACCUMULATION = 3
"""Measured: peaks allocated, reserved and required are the same for 2, 3, 4, 8 and 16 micro-batches (60M to 1B,
with and without checkpointing and bucket views)."""
_MATRIX_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})
STEP_PHASES = (StepPhase.first, StepPhase.steady, StepPhase.refresh)


class Origin(NamedTuple):
    """What made a block: an operation in a module (`*` for the layer number), or a tensor of a parameter's."""

    op: str
    module: str
    traced: bool = False
    """Whether the operation is one of the traced model code, as PyTorch names it."""


OPTIMIZER_MODULE = "optimizer"
"""Module of what the update makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Events with what each block is for and the part of the step each event lies in.

    category: index into CATEGORIES per event (an ALLOC's); phase: index into PeakPhase per event; origin: index into
    origins per event (a FREE has that of the allocation before it); step_starts: event index at which each step begins.
    """

    events: ReplayEvents
    category: NDArray[np.int64]
    phase: NDArray[np.int64]
    origin: NDArray[np.int64]
    origins: tuple[Origin, ...]
    step_starts: tuple[int, ...]

    def live_after(self, event: int) -> NDArray[np.int64]:
        """Indices of the ALLOC events whose blocks are live after an event."""
        until = slice(0, event + 1)
        is_alloc = self.events.kinds[until] == ALLOC
        blocks = self.events.blocks[until]
        live = np.zeros(int(self.events.blocks.max()) + 1, dtype=bool)
        live[blocks[is_alloc]] = True
        live[blocks[~is_alloc]] = False
        return np.flatnonzero(is_alloc & live[blocks])

    def live_by_category(self, event: int) -> dict[str, int]:
        """Requested bytes live after an event, for each of CATEGORIES."""
        alive = self.live_after(event)
        nbytes = np.bincount(
            self.category[alive], weights=self.events.sizes[alive], minlength=len(CATEGORIES)
        )
        return dict(zip(CATEGORIES, map(int, nbytes), strict=True))


class _Writer:
    """Appends events; blocks are numbered in order of allocation."""

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self.blocks: list[int] = []
        self.sizes: list[int] = []
        self.categories: list[int] = []
        self.phases: list[int] = []
        self.releases: list[int] = []
        self.origin_of: list[int] = []
        self.origins: dict[Origin, int] = {}
        self.origin = 0
        self.phase = 0
        self.next_block = 0

    def alloc(self, nbytes: int, category: int, origin: Origin) -> int:
        self.origin = self.origins.setdefault(origin, len(self.origins))
        block, self.next_block = self.next_block, self.next_block + 1
        self._append(ALLOC, block, nbytes, category)
        return block

    def free(self, block: int) -> None:
        self._append(FREE, block, 0, -1)

    def _append(self, kind: int, block: int, nbytes: int, category: int) -> None:
        self.kinds.append(kind)
        self.blocks.append(block)
        self.sizes.append(nbytes)
        self.categories.append(category)
        self.phases.append(self.phase)
        self.origin_of.append(self.origin)

    def timeline(self, step_starts: tuple[int, ...]) -> Timeline:
        """What was written."""
        return Timeline(
            events=ReplayEvents(
                kinds=np.array(self.kinds, dtype=np.int8),
                blocks=np.array(self.blocks, dtype=np.int64),
                sizes=np.array(self.sizes, dtype=np.int64),
                releases=tuple(self.releases),
            ),
            category=np.array(self.categories, dtype=np.int64),
            phase=np.array(self.phases, dtype=np.int64),
            origin=np.array(self.origin_of, dtype=np.int64),
            origins=tuple(self.origins),
            step_starts=step_starts,
        )


_WEIGHTS, _MASTERS, _STATES, _GRADIENTS, _, _, _TEMPORARIES, _COMMUNICATION, _WORKSPACE = range(
    len(CATEGORIES)
)
_PHASE = {phase: j for j, phase in enumerate(PeakPhase)}
_PHASE_OF_LABEL = {
    "forward": _PHASE[PeakPhase.FORWARD],
    "loss": _PHASE[PeakPhase.LOSS],
    "backward": _PHASE[PeakPhase.BACKWARD],
    "end": _PHASE[PeakPhase.BACKWARD],
}


class _MicroBatch:
    """One micro-batch's tokens as plain lists, so that repeating them is cheap."""

    def __init__(self, program: EventProgram, symbols: dict[str, int]) -> None:
        events, nbytes = expand(program, symbols)
        self.kinds: list[int] = events.kind.tolist()
        self.blocks: list[int] = events.block.tolist()
        self.sizes: list[int] = nbytes.tolist()
        self.labels: list[int] = events.label.tolist()
        self.num_blocks = events.num_blocks
        self.backward_start, self.end_start, self.stop = events.part_ends
        self.origins = [Origin(x.op, x.module, traced=True) for x in program.labels]
        self.categories = [CATEGORIES.index(x.category) for x in program.labels]
        self.phases = [_PHASE_OF_LABEL[x.phase] for x in program.labels]
        self.is_product = [x.op in _MATRIX_PRODUCTS for x in program.labels]
        self.templates = [p.name for p in program.parameters]

    def alloc(self, out: _Writer, label: int, nbytes: int) -> int:
        """Write an allocation."""
        out.phase = self.phases[label]
        return out.alloc(nbytes, self.categories[label], self.origins[label])


class _Run:
    """Writes the events of one run."""

    def __init__(self, memory: StepMemory, micro_batch: _MicroBatch) -> None:
        self.memory, self.batch = memory, micro_batch
        self.loop = memory.optimizer.loop
        self.out = _Writer()
        self.states: dict[Hashable, deque[int]] = {}
        self.gradients: dict[str, int] = {}
        self.workspace_threads: set[str] = set()
        self.parameters = {p.name: p for p in memory.tensors.trained}
        self.numbers: list[int] = []
        self.released = memory.gradients is Gradients.RELEASED
        self.scaler_made = False

    def setup(self) -> None:
        """Weights and buffers, masters, then DDP's buckets."""
        tensors, out = self.memory.tensors, self.out
        for parameter in tensors.held:
            out.alloc(parameter.nbytes, _WEIGHTS, Origin("weight", parameter.name))
        for (name, _), nbytes in zip(self.memory.table.buffers, tensors.buffer_bytes, strict=True):
            out.alloc(nbytes, _WEIGHTS, Origin("buffer", name))
        if self.loop.master_weights:
            for trained in tensors.local:
                out.alloc(trained.numel * MASTER_BYTES, _MASTERS, Origin("fp32 master weight", trained.name))
        for nbytes in tensors.bucket_bytes:
            out.alloc(nbytes, _COMMUNICATION, Origin("DDP bucket", ""))

    def step(self, phase: StepPhase, grad_accum_steps: int) -> None:
        """All micro-batches, the update, and the gradients' release."""
        if self.loop.empties_cache:
            self.out.releases.append(len(self.out.kinds))
        for number in range(grad_accum_steps):
            self._forward_and_backward(phase)
            if number < grad_accum_steps - 1:
                self._end()
        self.out.phase = _PHASE[PeakPhase.OPTIMIZER_STEP]
        if not self.memory.optimizer.layerwise:
            self._update(phase)
        if self.loop.sets_grads_to_none:
            for name in self.parameters:
                if name in self.gradients:
                    self.out.free(self.gradients.pop(name))
        self._end()

    def _update(self, phase: StepPhase) -> None:
        """Unscale, clip, copy to master precision, step."""
        optimizer, tensors, loop = self.memory.optimizer, self.memory.tensors, self.loop
        if loop.scales_loss:
            self._optimizer(unscaling_events())
        if loop.clips:
            self._optimizer(clipping_events(tensors.local, tensors.trained_element_bytes))
        masters = self._master_gradients() if loop.master_weights else []
        self._optimizer(optimizer.program.events(tensors.local, phase))
        if loop.scales_loss:
            self._optimizer(drop_found_inf_events())
        for block in masters:
            self.out.free(block)

    def _master_gradients(self) -> list[int]:
        """fp32 copies of the gradients, each of which is freed once copied."""
        blocks = []
        for parameter in self.memory.tensors.local:
            nbytes = parameter.numel * MASTER_BYTES
            blocks.append(self.out.alloc(nbytes, _GRADIENTS, Origin("fp32 gradient", parameter.name)))
            if parameter.name in self.gradients:
                self.out.free(self.gradients.pop(parameter.name))
        return blocks

    def _forward_and_backward(self, phase: StepPhase) -> None:
        batch, out = self.batch, self.out
        numbers = self.numbers = [-1] * batch.num_blocks
        layers: dict[str, int] = {}
        thread = "forward"
        for j in range(batch.end_start):
            kind, block = batch.kinds[j], batch.blocks[j]
            if j == batch.backward_start:
                thread = "backward"
                self._make_scaler()
            if kind == Token.ALLOC:
                label = batch.labels[j]
                numbers[block] = batch.alloc(out, label, batch.sizes[j])
                if batch.is_product[label] and thread not in self.workspace_threads:
                    self._add_workspace(thread)
            elif kind == Token.FREE:
                out.free(numbers[block])
            elif kind == Token.GRADIENT_READY:
                name = self._parameter_name(batch.templates[batch.labels[j]], layers)
                self._gradient_ready(name, numbers[block], phase)

    def _make_scaler(self) -> None:
        """The scaler's numbers, when it first scales a loss."""
        if self.loop.scales_loss and not self.scaler_made:
            self.scaler_made = True
            self._optimizer(scaler_state_events())

    def _add_workspace(self, thread: str) -> None:
        self.workspace_threads.add(thread)
        self.out.alloc(cublas_workspace_bytes(self.memory.gpu), _WORKSPACE, Origin("cuBLAS workspace", ""))

    def _parameter_name(self, template: str, seen: dict[str, int]) -> str:
        """Backward completes the last layer's gradients first."""
        count = seen[template] = seen.get(template, 0) + 1
        return template.replace("*", str(self.memory.tensors.model.num_layers - count), 1)

    def _gradient_ready(self, name: str, block: int, phase: StepPhase) -> None:
        if self.memory.optimizer.layerwise:
            self.gradients[name] = block
            self._optimizer(self.memory.optimizer.program.events((self.parameters[name],), phase))
            if self.gradients.pop(name, None) is None:
                return  # the update freed the gradient itself
        if self.released or name in self.gradients or name not in self.parameters:
            self.out.free(block)
        else:
            self.gradients[name] = block

    def _optimizer(self, events: list[OptimizerEvent]) -> None:
        out = self.out
        for kind, key, nbytes, label in events:
            if kind == "alloc":
                is_state = not (isinstance(key, tuple) and key[0] == "tmp")
                block = out.alloc(
                    nbytes, _STATES if is_state else _TEMPORARIES, Origin(label, OPTIMIZER_MODULE)
                )
                self.states.setdefault(key, deque()).append(block)
            elif isinstance(key, tuple) and key[0] == GRADIENT:
                out.free(self.gradients.pop(key[1]))
            else:
                out.free(self.states[key].popleft())

    def _end(self) -> None:
        """The loop drops the loss and the inputs."""
        batch = self.batch
        for j in range(batch.end_start, batch.stop):
            if batch.kinds[j] == Token.FREE:
                self.out.free(self.numbers[batch.blocks[j]])


def build_timeline(
    memory: StepMemory, program: EventProgram, *, micro_batch_size: int, seq_len: int, grad_accum_steps: int
) -> Timeline:
    """Events of three steps of one run.

    Raises:
        UnsupportedError: the placement's events are not known one by one (FSDP).
    """
    if memory.tensors.placement is Placement.FSDP:
        raise UnsupportedError("parallelism.dp_shard_degree", memory.tensors.shard_degree, "1 for a replay")
    symbols = memory.symbols(micro_batch_size, seq_len)
    run = _Run(memory, _MicroBatch(program, symbols))
    run.setup()
    starts = []
    for phase in STEP_PHASES:
        starts.append(len(run.out.kinds))
        run.step(phase, min(grad_accum_steps, _LARGEST_ACCUMULATION))
    return run.out.timeline(tuple(starts))


def micro_batch_timeline(program: EventProgram, symbols: dict[str, int]) -> Timeline:
    """Events of one micro-batch alone: no weights, no optimizer, its gradients kept."""
    batch, out = _MicroBatch(program, symbols), _Writer()
    for kind, block, nbytes, label in zip(batch.kinds, batch.blocks, batch.sizes, batch.labels, strict=True):
        if kind == Token.ALLOC:
            batch.alloc(out, label, nbytes)
        elif kind == Token.FREE:
            out.free(block)
    return out.timeline((0,))
