"""What the product's model says of a case: its timeline of events, and the peaks of table and replay."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whatfits.estimator.catalog.gpus import load_gpus
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.optimizers import StepPhase
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank, RankTensors
from whatfits.estimator.memory.replay import ALLOC, replay
from whatfits.estimator.memory.timeline import CATEGORIES, Timeline, build_timeline
from whatfits.estimator.profile import EventProgram, ProfileKey, Token, build_table, expand
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
_STEP_PHASES = (StepPhase.first, StepPhase.steady, StepPhase.refresh)
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
    labels = _labels(memory, program, case, timeline)
    events = _events(timeline, labels, on_cpu=on_cpu)
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


def _events(timeline: Timeline, labels: list[str], *, on_cpu: bool) -> EventList:
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
            events.add(nbytes, block, labels[index])
        elif block in sizes:
            events.add(-sizes[block], block, labels[index])
    return events


def _not_on_cpu(category: str, nbytes: int) -> bool:
    """The fused optimizer's `step` lives on the device; in the recording of a CPU run all such scalars are left out."""
    return category == "workspace" or (category == "optimizer_states" and nbytes == _DEVICE_SCALAR_BYTES)


def _labels(memory: StepMemory, program: EventProgram, case: Case, timeline: Timeline) -> list[str]:
    """Phase and, for what the traced micro-batch does, op and module of each event of the timeline."""
    labels = [_PHASES[phase] + " " for phase in timeline.phase.tolist()]
    symbols = memory.symbols(case.micro_batch_size, case.seq_len)
    for step, start in zip(_STEP_PHASES, timeline.step_starts, strict=True):
        position = start
        for number in range(case.grad_accum_steps):
            first = number == 0
            for text in _micro_batch_labels(memory, program, symbols, step, first=first):
                while timeline.category[position] == CATEGORIES.index("workspace"):
                    labels[position] += "workspace"
                    position += 1
                labels[position] += text
                position += 1
            if number < case.grad_accum_steps - 1:
                position += _num_end_frees(program, symbols)
    for index, category in enumerate(timeline.category.tolist()):
        if labels[index].endswith(" "):
            labels[index] += CATEGORIES[category] if category >= 0 else ""
    return [label.strip() for label in labels]


def _micro_batch_labels(
    memory: StepMemory, program: EventProgram, symbols: dict[str, int], step: StepPhase, *, first: bool
) -> Iterator[str]:
    """One label per event the timeline writes for a micro-batch's forward and backward, workspaces apart."""
    events, _ = expand(program, symbols)
    seen: dict[str, int] = {}
    whole = {p.name: p for p in memory.tensors.whole}
    layerwise = memory.optimizer.layerwise
    for kind, label in list(zip(events.kind.tolist(), events.label.tolist(), strict=True))[
        : events.part_ends[1]
    ]:
        if kind == Token.ALLOC:
            origin = program.labels[label]
            yield f"{origin.op} {origin.module}"
        elif kind == Token.FREE:
            yield ""
        elif kind == Token.GRADIENT_READY:
            template = program.parameters[label].name
            seen[template] = seen.get(template, 0) + 1
            name = template.replace("*", str(symbols["L"] - seen[template]), 1)
            if layerwise:
                yield from (f"update {name}" for _ in memory.optimizer.program.events((whole[name],), step))
            if layerwise or not first:
                yield f"gradient {name}"


def _num_end_frees(program: EventProgram, symbols: dict[str, int]) -> int:
    events, _ = expand(program, symbols)
    return int((events.kind[events.part_ends[1] :] == Token.FREE).sum())
