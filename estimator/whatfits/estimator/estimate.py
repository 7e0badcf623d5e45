"""One run, one answer: specs in, `Estimate` out."""

from functools import lru_cache

import numpy as np

from whatfits.estimator.catalog import ResolvedRun, resolve_run
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import choose_stack, profile_key, program_of, rank_tensors, table_of
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.estimate import Device, memory_from_replay, memory_from_table
from whatfits.estimator.memory.explain import explain_step
from whatfits.estimator.memory.loop import loop_of
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.memory.placement import Placement, placement_of
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.memory.timeline import build_timeline
from whatfits.estimator.memory.verdict import usable_memory, verdict_of
from whatfits.estimator.profile import MissingProfileError
from whatfits.estimator.provenance import provenance_of
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    Estimate,
    Explanation,
    MemoryEstimate,
    RunSpec,
    TimeEstimate,
    require_kernel,
    require_supported,
)
from whatfits.estimator.timing import step_times, time_at, timed_model

__all__ = ["estimate_run", "step_memory"]

_NO_REPLAY = (
    "under FSDP memory comes from a table by category, without the single tensors an explanation names"
)


def estimate_run(run: RunSpec, *, explain: bool = False) -> Estimate:
    """Answer one run: memory with a replay of the allocator, time, and the verdict.

    With `explain` also what is live at the peak, by module and operation, and the step it lies in. Under FSDP memory
    comes from the table alone, which has no explanation.

    Raises:
        InputError: the run breaks a rule or names something unknown.
        UnsupportedError: the run is valid but not modelled yet, or has no explanation.
    """
    resolved = resolve_run(run)
    require_supported(resolved.run, resolved.model, resolved.gpu)
    try:
        stack = choose_stack(resolved.run.stack)
        filled = resolved.run.model_copy(update={"stack": stack})
        return _estimate(filled.model_dump_json(), resolved.assumptions, explain)
    except MissingProfileError as error:
        raise error.for_model(run.model) from None


@lru_cache(maxsize=1024)
def _estimate(run_json: str, assumptions: tuple[str, ...], explain: bool) -> Estimate:
    """Estimate of a resolved run; cached, since a replay costs a second."""
    resolved = resolve_run(RunSpec.model_validate_json(run_json))
    run = resolved.run
    memory = step_memory(resolved)
    device = Device(
        gpu=resolved.gpu,
        usable=usable_memory(resolved.gpu, run.hardware),
        num_gpus=run.hardware.num_gpus,
    )
    memory_estimate, explanation = _memory(resolved, memory, device, explain=explain)
    probability = device.probability(memory_estimate)
    return Estimate(
        fits=verdict_of(probability),
        fit_probability=probability,
        memory=memory_estimate,
        time=_time(resolved, memory) if timed_model(resolved.model) is not None else None,
        provenance=provenance_of(run, memory, assumptions),
        spec=run,
        explanation=explanation,
    )


def _time(resolved: ResolvedRun, memory: StepMemory) -> TimeEstimate:
    run, training = resolved.run, resolved.run.training
    times = step_times(
        memory.optimizer,
        training,
        resolved.gpu,
        run.hardware,
        micro_batch_size=np.array([training.micro_batch_size]),
        seq_len=training.seq_len,
        grad_accum_steps=training.grad_accum_steps,
        checkpointing=training.activation_checkpointing is ActivationCheckpointing.FULL,
    )
    return time_at(times, 0)


def step_memory(resolved: ResolvedRun) -> StepMemory:
    """Table, tensors and optimizer of a resolved run, ready to evaluate.

    Raises:
        UnsupportedError: there is no profile for the run, or its attention kernel does not run on the GPU.
    """
    run, model, training = resolved.run, resolved.model, resolved.run.training
    table = table_of(profile_key(model, training, resolved.gpu), run.stack, training)
    require_kernel(table.kernel, model, resolved.gpu)
    placement = placement_of(run.parallelism)
    tensors = rank_tensors(model, table, training, placement, run.parallelism.dp_shard_degree)
    optimizer = OptimizerOnRank.build(
        tensors, training.optimizer, layerwise=training.layerwise_update, loop=loop_of(training)
    )
    return StepMemory(table=table, optimizer=optimizer, gpu=resolved.gpu)


def _memory(
    resolved: ResolvedRun, memory: StepMemory, device: Device, *, explain: bool
) -> tuple[MemoryEstimate, Explanation | None]:
    training, mode = resolved.run.training, resolved.run.allocator
    symbols = memory.symbols(training.micro_batch_size, training.seq_len)
    sizes = rounded_sizes(memory.table, symbols)
    peaks = memory.peaks(sizes, accumulated=np.array([training.grad_accum_steps > 1]))
    if memory.tensors.placement is Placement.FSDP:
        if explain:
            degree = resolved.run.parallelism.dp_shard_degree
            raise UnsupportedError(
                "parallelism.dp_shard_degree", degree, "1 for an explanation", reason=_NO_REPLAY
            )
        return memory_from_table(memory, sizes, peaks, 0, device), None
    timeline = build_timeline(
        memory,
        program_of(memory.table.key, resolved.run.stack, training),
        micro_batch_size=training.micro_batch_size,
        seq_len=training.seq_len,
        grad_accum_steps=training.grad_accum_steps,
    )
    answer = memory_from_replay(timeline, int(peaks.nbytes[0]), mode, device)
    return answer, explain_step(timeline, mode) if explain else None
