"""What the product says to one row: with a profile it has, or with a trace of the row's own library stack.

A shipped profile answers where one is of the row's transformers. Elsewhere, where an interpreter with the row's libraries is
at hand, the same estimate is made from a direct trace in it; everything after the trace is the product's.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.catalog import ResolvedRun, resolve_run
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import first_kernel, profile_key, rank_tensors
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.estimate import Device, memory_from_replay
from whatfits.estimator.memory.keep_outputs import keep_outputs
from whatfits.estimator.memory.loop import loop_of
from whatfits.estimator.memory.optimizers import OptimizerProgram
from whatfits.estimator.memory.placement import placement_of
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.memory.replay_events import ALLOC
from whatfits.estimator.memory.timeline import Timeline, build_timeline
from whatfits.estimator.memory.verdict import usable_memory, verdict_of
from whatfits.estimator.profile import EventProgram, build_table, load_program
from whatfits.estimator.profile.store import DEFAULT_STACK, find_stack, shipped_stacks
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    Method,
    PeakPhase,
    Precision,
    RunSpec,
    require_supported,
)
from whatfits.estimator.timing import step_times, time_at
from whatfits.profiler.trace.child_process import TraceChild
from whatfits.profiler.trace.classes import KERNEL_ORDERS, class_at
from whatfits.profiler.trace.direct import program_of_trace
from whatfits.profiler.trace.options import AdapterOptions, Dims, StepOptions

__all__ = ["Answer", "Interpreters", "Prepared", "answer", "compose", "evaluate", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One estimate, reduced to what rows are compared with."""

    allocated: int
    reserved: int
    required: int
    """The smallest cap on segments under which the step completes."""
    requested_by_phase: dict[str, int]
    """Peak of requested bytes in each phase of the steps after the first."""
    device_low: int
    device_median: int
    device_high: int
    verdict: str
    step_seconds: tuple[float, float, float]
    """Low, median and high of the 90% interval."""
    stack: dict[str, str]
    how: str
    """`shipped profile` or `direct trace`."""
    kernel: str
    seconds: float
    """What the answer took, a trace included."""


class Interpreters:
    """Children that trace with the libraries of other environments, started when first needed."""

    def __init__(self, pythons: Sequence[str | Path]) -> None:
        self._pythons = list(pythons)
        self._children: dict[str, TraceChild] | None = None

    def find(self, stack: Mapping[str, str]) -> TraceChild | None:
        """The child whose transformers has the row's minor version."""
        if self._children is None:
            started = [TraceChild(python, timeout_seconds=900) for python in self._pythons]
            self._children = {child.stack["transformers"]: child for child in started}
        return self._children.get(_minor(stack["transformers"]))

    def versions(self) -> list[str]:
        """Libraries of the children that were started, in words."""
        children = (self._children or {}).values()
        return [", ".join(f"{name} {v}" for name, v in sorted(child.versions.items())) for child in children]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (self._children or {}).values():
            child.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run with everything but the memory limit decided."""

    resolved: ResolvedRun
    program: EventProgram
    memory: StepMemory
    timeline: Timeline
    requested: int
    how: str
    seconds: float


def evaluate(run: dict[str, Any], stack: Mapping[str, str], interpreters: Interpreters) -> Answer:
    """Estimate a run as its libraries would run it.

    Raises:
        WhatfitsError: the product does not model the run, or has no profile for it; the reason stands in the error.
        TraceError: it cannot be traced with the row's libraries.
    """
    return answer(prepare(run, stack, interpreters))


def prepare(run: dict[str, Any], stack: Mapping[str, str], interpreters: Interpreters) -> Prepared:
    """Everything up to the replay; raises as `evaluate` does."""
    started = time.perf_counter()
    resolved = resolve_run(RunSpec.model_validate(run))
    require_supported(resolved.run, resolved.model, resolved.gpu)
    program, how = _program(resolved, stack, interpreters.find(stack))
    program = keep_outputs(program, resolved.run.training.loop.keep_outputs)
    memory, timeline, requested = compose(resolved, program)
    return Prepared(
        resolved=resolved,
        program=program,
        memory=memory,
        timeline=timeline,
        requested=requested,
        how=how,
        seconds=time.perf_counter() - started,
    )


def answer(prepared: Prepared, memory_cap_bytes: int | None = None) -> Answer:
    """The estimate, on a device that leaves the run no more than a limit."""
    started = time.perf_counter()
    resolved, timeline = prepared.resolved, prepared.timeline
    hardware = resolved.run.hardware.model_copy(update={"memory_cap_bytes": memory_cap_bytes})
    device = Device(gpu=resolved.gpu, usable=usable_memory(resolved.gpu, hardware), num_gpus=1)
    found = memory_from_replay(timeline, prepared.requested, resolved.run.allocator, device)
    allocated, reserved = found.peak_allocated_bytes, found.peak_reserved_bytes
    required = found.required_reserved_bytes
    assert None not in (allocated, reserved, required), "replayed"
    return Answer(
        allocated=allocated or 0,
        reserved=reserved or 0,
        required=required or 0,
        requested_by_phase=_peaks_by_phase(timeline),
        device_low=found.device_bytes.low,
        device_median=found.device_bytes.median,
        device_high=found.device_bytes.high,
        verdict=str(verdict_of(device.probability(found))),
        step_seconds=_step_seconds(resolved, prepared.memory),
        stack=dict(prepared.program.stack),
        how=prepared.how,
        kernel=prepared.program.kernel,
        seconds=prepared.seconds + time.perf_counter() - started,
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _program(
    resolved: ResolvedRun, stack: Mapping[str, str], child: TraceChild | None
) -> tuple[EventProgram, str]:
    """The shipped profile where one is of the row's transformers, else a trace where its libraries are at hand."""
    is_shipped = any(_minor(stack["transformers"]) == known["transformers"] for known in shipped_stacks())
    if child is None or is_shipped:
        try:
            return _shipped(resolved, stack), "shipped profile"
        except UnsupportedError:
            if child is None:
                raise
    return _traced(resolved, child), "direct trace"


def _shipped(resolved: ResolvedRun, stack: Mapping[str, str]) -> EventProgram:
    """The product's profile of the row's transformers; of the default stack where that version has none.

    5.x releases before the default one differ from it in nothing these rows use.
    """
    major = stack["transformers"].partition(".")[0]
    same = find_stack({"transformers": stack["transformers"]}) if major == "4" else DEFAULT_STACK
    return load_program(profile_key(resolved.model, resolved.run.training, resolved.gpu), same)


def _traced(resolved: ResolvedRun, child: TraceChild) -> EventProgram:
    training = resolved.run.training
    adapter = None
    if training.method is not Method.FULL:
        assert training.adapter is not None, "a run with an adapter says which"
        assert training.adapter.targets is not None, "filled in when the run was resolved"
        adapter = AdapterOptions(
            targets=tuple(training.adapter.targets),
            dora=training.method is Method.DORA,
            quantized=training.method is Method.QLORA,
        )
    precision = Precision.BF16 if training.precision is Precision.BF16_MASTER else training.precision
    options = StepOptions(
        kernels=KERNEL_ORDERS[first_kernel(training, resolved.gpu)],
        architecture=resolved.model.architecture,
        tie_embeddings=resolved.model.tie_embeddings,
        precision=str(precision),
        attention="eager" if training.attention == "eager" else "sdpa",
        mask="packed" if training.packed_sequences else "none",
        dropout=training.dropout,
        checkpointing=str(training.activation_checkpointing),
        loss=str(training.loss),
        adapter=adapter,
    )
    dims: Dims = {**resolved.model.dims, "b": training.micro_batch_size, "s": training.seq_len}
    if training.adapter is not None:
        dims["r"] = training.adapter.rank
    key = class_at(options, dims).key
    return program_of_trace(child.trace(dims, options), key, dims["L"], child.stack)


def compose(
    resolved: ResolvedRun, program: EventProgram, optimizer_program: OptimizerProgram | None = None
) -> tuple[StepMemory, Timeline, int]:
    """The step's memory and events, put together as `estimate_run` does, and the largest sum of requested bytes.

    `optimizer_program` is that of a run whose optimizer the product does not have.
    """
    run, training = resolved.run, resolved.run.training
    table = build_table(program)
    tensors = rank_tensors(resolved.model, table, training, placement_of(run.parallelism), 1)
    loop, layerwise = loop_of(training), training.layerwise_update
    if optimizer_program is None:
        optimizer = OptimizerOnRank.build(tensors, training.optimizer, layerwise=layerwise, loop=loop)
    else:
        optimizer = OptimizerOnRank(tensors, optimizer_program, layerwise=layerwise, loop=loop)
    memory = StepMemory(table=table, optimizer=optimizer, gpu=resolved.gpu)
    timeline = build_timeline(
        memory,
        program,
        micro_batch_size=training.micro_batch_size,
        seq_len=training.seq_len,
        grad_accum_steps=training.grad_accum_steps,
    )
    return memory, timeline, int(_live(timeline).max())


def _live(timeline: Timeline) -> NDArray[np.int64]:
    """Requested bytes after each event."""
    events = timeline.events
    size_of = dict(
        zip(
            events.blocks[events.kinds == ALLOC].tolist(),
            events.sizes[events.kinds == ALLOC].tolist(),
            strict=True,
        )
    )
    sizes = np.array([size_of[block] for block in events.blocks.tolist()], dtype=np.int64)
    live: NDArray[np.int64] = np.cumsum(np.where(events.kinds == ALLOC, sizes, -sizes))
    return live


def _peaks_by_phase(timeline: Timeline) -> dict[str, int]:
    """Largest sum of requested bytes in each phase, counting what is live when a phase begins."""
    live = _live(timeline)
    before = np.concatenate([[0], live[:-1]])
    second = timeline.step_starts[1]
    return {
        str(phase): int(max(live[second:][here].max(), before[second:][here].max()))
        for number, phase in enumerate(PeakPhase)
        if (here := timeline.phase[second:] == number).any()
    }


def _step_seconds(resolved: ResolvedRun, memory: StepMemory) -> tuple[float, float, float]:
    training = resolved.run.training
    times = step_times(
        memory.optimizer,
        training,
        resolved.gpu,
        resolved.run.hardware,
        micro_batch_size=np.array([training.micro_batch_size]),
        seq_len=training.seq_len,
        grad_accum_steps=training.grad_accum_steps,
        checkpointing=training.activation_checkpointing is ActivationCheckpointing.FULL,
    )
    found = time_at(times, 0).step_time_seconds
    return (found.low, found.median, found.high)
