"""A budget in, a ranked plan out."""

import time

from whatfits.estimator.catalog import ResolvedPlanRequest, resolve_plan_request
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import choose_stack
from whatfits.estimator.memory.device import ALLOCATOR_OVERHEAD, FSDP_OVERHEAD, LARGEST_BLOCK_OVERHEAD
from whatfits.estimator.memory.estimate import Device, memory_from_table
from whatfits.estimator.memory.verdict import usable_memory, verdict_of
from whatfits.estimator.profile import MissingProfileError
from whatfits.estimator.provenance import provenance_of
from whatfits.estimator.recommend.choices import batch_points, choices, optimizers_asked, run_of
from whatfits.estimator.recommend.explain import reasons, rejections
from whatfits.estimator.recommend.rank import Ranked, rank
from whatfits.estimator.recommend.search import Search, search
from whatfits.estimator.specs import (
    Candidate,
    Estimate,
    Plan,
    PlanRequest,
    require_supported,
    require_supported_gpu,
    require_supported_request,
)
from whatfits.estimator.timing import require_timed, time_at

__all__ = ["plan_runs"]

_TABLE_ONLY = (
    "Candidates come from the count table; the allocator's overhead is taken as "
    f"{100 * ALLOCATOR_OVERHEAD.low:.0f} to {100 * ALLOCATOR_OVERHEAD.high:.0f}% of allocated "
    f"({100 * FSDP_OVERHEAD.low:.0f} to {100 * FSDP_OVERHEAD.high:.0f}% under FSDP), and {LARGEST_BLOCK_OVERHEAD.low:.1f} to "
    f"{LARGEST_BLOCK_OVERHEAD.high:.1f} times the largest block. `estimate` replays one of them and narrows that."
)


def plan_runs(request: PlanRequest) -> Plan:
    """Every optimizer, rank, placement, micro-batch and checkpointing for a budget: what fits, ranked, and why not.

    Raises:
        InputError: the request breaks a rule or names something unknown.
        UnsupportedError: the request is valid but not modelled yet.
    """
    started = time.perf_counter()
    resolved = resolve_plan_request(request)
    require_supported_request(resolved.request)
    for precision in resolved.request.precisions:
        require_supported_gpu(resolved.gpu, precision)
    require_timed(resolved.model)  # before anything is traced for it
    stack = choose_stack(None)
    options, points = choices(resolved), batch_points(resolved)
    if not options:
        names = ", ".join(optimizers_asked(resolved))
        reason = f"{names} cannot run on {resolved.hardware.num_gpus} GPUs in the way asked for"
        raise UnsupportedError("optimizers", names, "one GPU, or other optimizers", reason=reason)
    require_supported(run_of(resolved, stack, options[0], points[0]), resolved.model, resolved.gpu)
    device = Device(
        gpu=resolved.gpu,
        usable=usable_memory(resolved.gpu, resolved.hardware),
        num_gpus=resolved.hardware.num_gpus,
    )
    try:
        result = search(resolved, stack, options, points, device)
    except MissingProfileError as error:
        raise error.for_model(request.model) from None
    ranked = rank(result, resolved.request.objective, resolved.request.limit)
    return Plan(
        candidates=tuple(_candidate(resolved, stack, result, ranked, int(j)) for j in ranked.shown),
        rejected=rejections(result, optimizers_asked(resolved)),
        searched=result.size,
        elapsed_seconds=time.perf_counter() - started,
        assumptions=(*resolved.assumptions, _TABLE_ONLY),
    )


def _candidate(
    resolved: ResolvedPlanRequest, stack: dict[str, str], result: Search, ranked: Ranked, position: int
) -> Candidate:
    """One shown configuration with its estimate."""
    found, point = result.found[ranked.choice[position]], int(ranked.point[position])
    number, index = found.locate(point)
    memory, grid = found.memories[number], found.grids[number]
    spec = run_of(resolved, stack, found.choice, result.points[point])
    probability = float(found.probability[point])
    estimate = Estimate(
        fits=verdict_of(probability),
        fit_probability=probability,
        memory=memory_from_table(memory, grid.sizes, found.peaks[number], index, result.device),
        time=time_at(found.times, point),
        provenance=provenance_of(spec, memory, resolved.assumptions),
        spec=spec,
    )
    return Candidate(
        spec=spec,
        estimate=estimate,
        pareto=bool(ranked.pareto[position]),
        reasons=reasons(result, ranked, position),
    )
