"""A run measured in a process of its own, which ends with whoever asked; nothing here loads torch: the child does."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

from whatfits.estimator.specs.measurement import (
    FailureKind,
    MeasureDevice,
    MeasurementFailure,
    MeasurementResult,
    MeasureRequest,
    Progress,
)
from whatfits.profiler.measure.child_process import measure_command, run_command

__all__ = ["missing_extra", "run_child"]

_NEEDED = ("torch", "transformers")


def run_child(
    request: MeasureRequest,
    *,
    visible_devices: tuple[str, ...] | None,
    on_progress: Callable[[Progress], object],
    should_stop: Callable[[], bool],
    python: str = sys.executable,
) -> MeasurementResult | MeasurementFailure | None:
    """Measure a request, on this machine's devices.

    Args:
        request: what is measured, on as many GPUs of this machine as its hardware has.
        visible_devices: the GPUs it may use, as CUDA names them; None for all of them.
        on_progress: told how far it is, in the calling thread.
        should_stop: asked four times a second; once it says so, the child and all it started are gone within 2 s.
        python: interpreter of the environment that measures.

    Returns:
        The result, out of memory included; or why there is none; None when `should_stop` said so.
    """
    hardware = request.spec.hardware
    if request.device is MeasureDevice.GPU and hardware.num_gpus > hardware.gpus_per_node:
        message = f"{hardware.num_gpus} GPUs are more than the {hardware.gpus_per_node} of one machine"
        return MeasurementFailure(kind=FailureKind.REFUSED, message=message, field="spec.hardware.num_gpus")
    missing = missing_extra() if python == sys.executable else None
    if missing is not None:
        return MeasurementFailure(kind=FailureKind.REFUSED, message=missing)
    return run_command(
        request,
        measure_command(request, python),
        visible_devices=visible_devices,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def missing_extra() -> str | None:
    """What is to be installed before this environment can measure, in a sentence; None when nothing is."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if not missing:
        return None
    return f"measuring needs {' and '.join(missing)}, not installed here: pip install 'whatfits[agent]'"
