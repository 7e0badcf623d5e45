"""What the product's model says of a case: its timeline of events, and the peaks of table and replay."""

from dataclasses import dataclass

import numpy as np

from whatfits.estimator.catalog.gpus import load_gpus
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank, RankTensors
from whatfits.estimator.memory.replay import ALLOC, replay
from whatfits.estimator.memory.timeline import CATEGORIES, Timeline, build_timeline
from whatfits.estimator.profile import EventProgram, ProfileKey, build_table
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    GpuSpec,
    ModelSpec,
    OptimizerSpec,
    PeakPhase,
    TrainingSpec,
)
from whatfits.profiler.measure.cases import Case
from whatfits.profiler.measure.events import EventList

__all__ = ["Peaks", "Prediction", "case_key", "predict"]

_PHASES = tuple(PeakPhase)
_DEVICE_SCALAR_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Peaks over all steps; None where nothing predicts or measures that one."""

    requested_bytes: int | None
    allocated_bytes: int | None
    reserved_bytes: int | None
    table_requested_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Events with their origin as labels, and peaks."""

    events: EventList
    peaks: Peaks


def case_key(model: ModelSpec, case: Case) -> ProfileKey:
    """Structure class a case falls into."""
    checkpointing = ActivationCheckpointing.FULL if case.checkpointing else ActivationCheckpointing.NONE
    training = TrainingSpec(
        activation_checkpointing=checkpointing, micro_batch_size=case.micro_batch_size, seq_len=case.seq_len
    )
    return profile_key(model, training)


def predict(
    model: ModelSpec, case: Case, program: EventProgram, *, compute_capability: str | None
) -> Prediction:
    """Predict a case from the event program of its class.

    `compute_capability` is the device's; None on a CPU, where neither cuBLAS workspaces nor the allocator's blocks
    exist and the optimizer's scalars are left out as they are in the recording.
    """
    on_cpu = compute_capability is None
    memory = _step_memory(model, case, program, compute_capability or "9.0")
    timeline = build_timeline(
        memory,
        program,
        micro_batch_size=case.micro_batch_size,
        seq_len=case.seq_len,
        grad_accum_steps=case.grad_accum_steps,
    )
    events = _events(timeline, on_cpu=on_cpu)
    if on_cpu:
        return Prediction(
            events=events,
            peaks=Peaks(requested_bytes=events.peak_bytes(), allocated_bytes=None, reserved_bytes=None),
        )
    replayed = replay(timeline.events)
    return Prediction(
        events=events,
        peaks=Peaks(
            requested_bytes=replayed.peak_requested_bytes,
            allocated_bytes=replayed.peak_allocated_bytes,
            reserved_bytes=replayed.peak_reserved_bytes,
            table_requested_bytes=_table_peak(memory, case),
        ),
    )


def _table_peak(memory: StepMemory, case: Case) -> int | None:
    """Peak of the count table, each tensor rounded up to 512; None for the direct trace of one point, which has none."""
    dims = memory.tensors.model.dims
    if dims["L"] < memory.table.first_layers:
        return None
    sizes = rounded_sizes(memory.table, memory.symbols(case.micro_batch_size, case.seq_len))
    return int(memory.peaks(sizes, accumulated=np.array([case.grad_accum_steps > 1])).nbytes[0])


def _step_memory(model: ModelSpec, case: Case, program: EventProgram, compute_capability: str) -> StepMemory:
    tensors = RankTensors(model, program.parameters, program.buffers, Placement.SINGLE)
    spec = OptimizerSpec.model_validate({"name": case.optimizer, "implementation": case.implementation})
    return StepMemory(
        table=build_table(program),
        optimizer=OptimizerOnRank.build(tensors, spec, layerwise=case.layerwise),
        gpu=_gpu(compute_capability),
    )


def _gpu(compute_capability: str) -> GpuSpec:
    """A catalog entry with the device's own compute capability, all that a timeline takes from it."""
    any_gpu = next(iter(load_gpus().values()))
    return any_gpu.model_copy(update={"compute_capability": compute_capability})


def _events(timeline: Timeline, *, on_cpu: bool) -> EventList:
    events, sizes = EventList(), dict[int, int]()
    columns = (timeline.events.kinds, timeline.events.blocks, timeline.events.sizes, timeline.category)
    starts = dict.fromkeys((0, *timeline.step_starts))
    for index, (kind, block, nbytes, category) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if index in starts:
            events.starts.append(len(events))
        if kind == ALLOC:
            if on_cpu and _not_on_cpu(CATEGORIES[category], nbytes):
                continue
            sizes[block] = nbytes
            events.add(nbytes, block, _label(timeline, index))
        elif block in sizes:
            events.add(-sizes[block], block, _label(timeline, index))
    return events


def _not_on_cpu(category: str, nbytes: int) -> bool:
    """The fused optimizer's `step` lives on the device; in the recording of a CPU run all such scalars are left out."""
    return category == "workspace" or (category == "optimizer_states" and nbytes == _DEVICE_SCALAR_BYTES)


def _label(timeline: Timeline, index: int) -> str:
    """Phase and, of an allocation, what made it."""
    phase = str(_PHASES[timeline.phase[index]])
    if timeline.events.kinds[index] != ALLOC:
        return phase
    origin = timeline.origins[timeline.origin[index]]
    return f"{phase} {origin.op} {origin.module}".strip()
