"""One measurement on this machine: what is expected, what is measured, and both as the record that a store keeps."""

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from whatfits.estimator import estimate_run
from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.catalog.depth import run_at_depth
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import Estimate, OptimizerImplementation, RunSpec, queue_name
from whatfits.estimator.specs.measurement import (
    Measurement,
    MeasurementFailure,
    MeasurementStatus,
    MeasureRequest,
)
from whatfits.estimator.specs.own_code import OWN_CODE_OPTIMIZERS
from whatfits.profiler.measure.child_process import Answer

__all__ = ["expected", "measure_here", "resolved_request"]

Ask = Callable[[RunSpec], Estimate]
Run = Callable[[MeasureRequest], Answer | None]


def resolved_request(request: MeasureRequest) -> MeasureRequest:
    """The request with everything filled in; a config, which may be known at the depth of interest alone, at that depth.

    Raises:
        InputError: A name is unknown or a rule is broken.
    """
    run = request.spec
    if request.num_layers is not None:
        shallow = run_at_depth(run, request.num_layers)
        run = run if isinstance(run.model, str) else shallow
    return request.model_copy(update={"spec": resolve_run(run).run})


def expected(request: MeasureRequest, ask: Ask = estimate_run) -> Estimate:
    """The estimate of what is measured, on the GPU that its hardware names: of our own code, where that is what runs.

    Raises:
        InputError: the run breaks a rule or names something unknown.
        UnsupportedError: the run is not modelled.
    """
    run, training = request.spec, request.spec.training
    if training.optimizer.name in OWN_CODE_OPTIMIZERS:
        optimizer = training.optimizer.model_copy(update={"implementation": OptimizerImplementation.WHATFITS})
        run = run.model_copy(update={"training": training.model_copy(update={"optimizer": optimizer})})
    return ask(run if request.num_layers is None else run_at_depth(run, request.num_layers))


def measure_here(
    request: MeasureRequest, run: Run, *, ask: Ask = estimate_run, campaign: str | None = None
) -> Measurement:
    """Estimate a request, measure it, and hold both together.

    Args:
        request: what is measured.
        run: measures it; None when it was stopped.
        ask: estimates it.
        campaign: what it is part of.

    Raises:
        InputError: the run breaks a rule or names something unknown.
    """
    estimate, warning = None, None
    try:
        estimate = expected(request, ask)  # first, as it may have to build a model that nobody has traced yet
    except UnsupportedError as error:
        warning = f"not estimated: {error}"
    filled = resolved_request(request)
    started = datetime.now(UTC)
    answer = run(filled)
    failure = answer if isinstance(answer, MeasurementFailure) else None
    result = None if isinstance(answer, MeasurementFailure) else answer
    if answer is None:
        status = MeasurementStatus.CANCELLED
    else:
        status = MeasurementStatus.SUCCEEDED if failure is None else MeasurementStatus.FAILED
    return Measurement(
        id=str(uuid4()),
        campaign=campaign,
        status=status,
        queue=queue_name(filled),
        request=filled,
        estimate=estimate,
        result=result,
        failure=failure,
        warning=warning,
        attempts=1,
        created_at=started,
        started_at=started,
        finished_at=datetime.now(UTC),
    )
