"""What the product's model says of a case: its timeline of events, and the peaks of table and replay."""

from dataclasses import dataclass

import numpy as np

from whatfits.estimator.catalog.gpus import load_gpus
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import MIN_LAYERS, profile_key, rank_tensors
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.loop import loop_of
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.memory.placement import placement_of
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.memory.replay import replay
from whatfits.estimator.memory.replay_events import ALLOC
from whatfits.estimator.memory.timeline import CATEGORIES, OPTIMIZER_MODULE, Origin, Timeline, build_timeline
from whatfits.estimator.profile import EventProgram, ProfileKey, build_table
from whatfits.estimator.specs import (
    GpuSpec,
    PeakPhase,
    TrainingSpec,
)
from whatfits.profiler.measure.events import EventList
from whatfits.profiler.measure.programs import trace_here
from whatfits.profiler.measure.recipe import Recipe

__all__ = ["Peaks", "Prediction", "UntracedError", "predict", "recipe_key", "traced_peak_on_cpu"]

_PHASES = tuple(PeakPhase)
_SCALAR_BYTES = 4


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


def recipe_key(recipe: Recipe) -> ProfileKey:
    """Structure class a recipe falls into; any depth has one, also those that no table covers."""
    deep = recipe.model.model_copy(update={"num_layers": max(recipe.model.num_layers, MIN_LAYERS)})
    return profile_key(deep, recipe.training)


def predict(recipe: Recipe, program: EventProgram, *, compute_capability: str | None) -> Prediction:
    """Predict a recipe from the event program of its class.

    `compute_capability` is the device's; None on a CPU, where neither cuBLAS workspaces nor the allocator's blocks
    exist and the optimizer's scalars are left out as they are in the recording.
    """
    on_cpu = compute_capability is None
    memory = _step_memory(recipe, program, compute_capability or "9.0")
    training = recipe.training
    timeline = build_timeline(
        memory,
        program,
        micro_batch_size=training.micro_batch_size,
        seq_len=training.seq_len,
        grad_accum_steps=training.grad_accum_steps,
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
            table_requested_bytes=_table_peak(memory, training),
        ),
    )


class UntracedError(Exception):
    """A run whose trace with the CPU's kernels is not known."""


def traced_peak_on_cpu(recipe: Recipe) -> int:
    """The most bytes of live tensors in a recipe's steps, by a trace with the CPU's kernels and the optimizer's program.

    Raises:
        UntracedError: the trace does not cover the recipe; the message is a sentence for a reader of the result.
    """
    try:
        program = trace_here(recipe_key(recipe), recipe, on_cpu=True)
        found = predict(recipe, program, compute_capability=None).peaks.requested_bytes
    except (UnsupportedError, NotImplementedError) as error:
        raise UntracedError(f"There is no trace beside this measurement: {error}") from error
    assert found is not None, "every prediction has it"
    return found


def _table_peak(memory: StepMemory, training: TrainingSpec) -> int | None:
    """Peak of the count table, each tensor rounded up to 512; None for the direct trace of one point, which has none."""
    dims = memory.tensors.model.dims
    if dims["L"] < memory.table.first_layers:
        return None
    sizes = rounded_sizes(memory.table, memory.symbols(training.micro_batch_size, training.seq_len))
    return int(memory.peaks(sizes, accumulated=np.array([training.grad_accum_steps > 1])).nbytes[0])


def _step_memory(recipe: Recipe, program: EventProgram, compute_capability: str) -> StepMemory:
    training, axes = recipe.training, recipe.parallelism
    table = build_table(program)
    tensors = rank_tensors(recipe.model, table, training, placement_of(axes), axes.dp_shard_degree)
    return StepMemory(
        table=table,
        optimizer=OptimizerOnRank.build(
            tensors, training.optimizer, layerwise=training.layerwise_update, loop=loop_of(training)
        ),
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
            origin = timeline.origins[timeline.origin[index]]
            if on_cpu and _not_on_cpu(CATEGORIES[category], nbytes, origin):
                continue
            sizes[block] = nbytes
            events.add(nbytes, block, _label(timeline, index))
        elif block in sizes:
            events.add(-sizes[block], block, _label(timeline, index))
    return events


def _not_on_cpu(category: str, nbytes: int, origin: Origin) -> bool:
    """What a CPU run's recording has not: cuBLAS' workspaces, what CUDA's kernels take inside, the update's scalars.

    Some scalars, such as the fused optimizer's `step`, live on the device and others on the host; on a CPU, where one
    cannot tell which, all of them are left out.
    """
    is_scalar = origin.module == OPTIMIZER_MODULE and nbytes == _SCALAR_BYTES
    return category == "workspace" or origin.op == DEVICE_SCRATCH or is_scalar


def _label(timeline: Timeline, index: int) -> str:
    """Phase and, of an allocation, what made it."""
    phase = str(_PHASES[timeline.phase[index]])
    if timeline.events.kinds[index] != ALLOC:
        return phase
    origin = timeline.origins[timeline.origin[index]]
    return f"{phase} {origin.op} {origin.module}".strip()
