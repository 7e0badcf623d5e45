"""`whatfits measure`: real training steps on this machine, beside what was expected of them."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from whatfits.service.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from whatfits.estimator.specs.measurement import Measurement, MeasureRequest, Progress

_DEVICES = ("gpu", "cpu")
_SEARCHES = ("max-micro-batch",)
_SEARCH_STEPS = {"measured_steps": 1, "warmup_steps": 2}
"""Of each run of a search, which is about memory: the first makes the states, and an ordinary one follows."""


def measure(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="JSON file with the run; - for standard input.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="gpu or cpu; default: gpu where the NVIDIA driver finds one."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Build only the first N layers of the model.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="Measured steps; default 10.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="Steps before them; default 3.")
    ] = None,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Keep the caching allocator's history of a step of each kind.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1, max=86_400, metavar="S", help="Seconds after which a run is killed.")
    ] = 600.0,
    find: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="max-micro-batch: search the largest micro-batch that runs."),
    ] = None,
    cap: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Use no more memory than this, such as 2GiB; needed by --find on a CPU."
        ),
    ] = None,
    micro: Annotated[
        bool, typer.Option("--micro", help="Time single kernels of the device instead of a run.")
    ] = False,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="Interpreter that measures; default: this one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurement as JSON.")] = False,
) -> None:
    """Run real training steps of SPEC on this machine, in a process of their own, and print measured beside estimated.

    On a CPU the bytes of live tensors are counted; its hardware is then what the estimate is of. Exit status 1: out of
    memory (--find: not even one sequence runs).
    """
    from whatfits.estimator.errors import InputError
    from whatfits.estimator.specs.measurement import MeasureRequest

    if micro:
        given = {"SPEC": spec, "--find": find, "--layers": layers, "--steps": steps, "--warmup": warmup}
        _require_none({**given, "--cap": cap, "--snapshot": snapshot or None})
        _time_kernels(_choose_device(device), timeout, python, as_json=as_json)
        return
    if spec is None:
        raise InputError("SPEC", None, "a file, - for standard input, or --micro", reason="not given")
    request = MeasureRequest.model_validate(
        {
            "spec": _read_run(spec, cap),
            "device": _choose_device(device),
            "num_layers": layers,
            **(_SEARCH_STEPS if find else {}),
            **({} if steps is None else {"measured_steps": steps}),
            **({} if warmup is None else {"warmup_steps": warmup}),
            "snapshot": snapshot,
            "timeout_seconds": timeout,
        }
    )
    if find is not None:
        from whatfits.service.cli.questions import require_choice

        require_choice("--find", find, _SEARCHES)
        _search(request, python, as_json=as_json)
    else:
        _measure(request, python, as_json=as_json)


def _read_run(source: str, cap: str | None) -> object:
    from whatfits.estimator.units import parse_bytes
    from whatfits.service.cli.questions import read_spec

    run = read_spec(source)
    if cap is not None and isinstance(run.get("hardware"), dict):
        run["hardware"] = {**run["hardware"], "memory_cap_bytes": parse_bytes(cap, field="--cap")}
    return run


def _choose_device(name: str | None) -> str:
    """The device asked for, or the one this machine has."""
    if name is not None:
        from whatfits.service.cli.questions import require_choice

        require_choice("--device", name, _DEVICES)
        return name
    from whatfits.profiler.measure.nvml import NvmlUnavailableError, open_nvml
    from whatfits.service.cli.output import note

    try:
        with open_nvml() as nvml:
            found = bool(nvml.gpus())
    except NvmlUnavailableError:
        found = False
    if not found:
        note("no GPU found: measuring on the CPU")
    return "gpu" if found else "cpu"


def _measure(request: "MeasureRequest", python: str | None, *, as_json: bool) -> None:
    from whatfits.estimator.specs.measurement import MeasurementOutcome
    from whatfits.service.cli.output import print_json

    measurement = _run(request, python)
    if as_json:
        print_json(measurement)
    if measurement.result is None:
        raise _failure_of(measurement)
    if not as_json:
        from whatfits.service.cli.render_measurement import render_measurement

        render_measurement(measurement)
    if measurement.result.outcome is MeasurementOutcome.OUT_OF_MEMORY:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)


def _search(request: "MeasureRequest", python: str | None, *, as_json: bool) -> None:
    from whatfits.profiler.measure.boundary import ProbeFailedError, find_max_micro_batch
    from whatfits.profiler.measure.local import expected
    from whatfits.service.cli.output import print_json
    from whatfits.service.cli.render_measurement import render_search

    try:
        found = find_max_micro_batch(request, lambda probe: _run(probe, python), expected)
    except ProbeFailedError as error:
        raise _failure_of(error.measurement) from error
    if as_json:
        print_json(found)
    else:
        render_search(found)
    if found.max_micro_batch_size is None:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)


def _run(request: "MeasureRequest", python: str | None) -> "Measurement":
    """One run in a child, with a line that says how far it is."""
    from whatfits.profiler.measure.local import measure_here
    from whatfits.service.cli.output import note, progress_line
    from whatfits.service.measure_child import run_child
    from whatfits.service.tracing import OnDemand

    _require_extra(python)
    size = request.spec.training.micro_batch_size
    with progress_line() as show:

        def tell(progress: "Progress") -> None:
            count = f" {progress.done}/{progress.total}" if progress.total else ""
            show(f"micro-batch {size}: {progress.stage}{count} {progress.message}".rstrip())

        return measure_here(
            request,
            lambda filled: run_child(
                filled,
                visible_devices=None,
                on_progress=tell,
                should_stop=lambda: False,
                python=python or sys.executable,
            ),
            ask=OnDemand(notify=note).estimate,
        )


def _require_none(given: dict[str, object]) -> None:
    """Refuse what belongs to a run beside --micro."""
    from whatfits.estimator.errors import InputError

    for name, value in given.items():
        if value is not None:
            raise InputError(name, value, "--micro alone", reason="kernels are timed without a run")


def _time_kernels(device: str, timeout: float, python: str | None, *, as_json: bool) -> None:
    from whatfits.estimator.specs.measurement import MeasureDevice
    from whatfits.profiler.measure.micro_process import NoKernelsError, time_kernels
    from whatfits.service.cli.failures import MeasureRunError
    from whatfits.service.cli.output import print_json, progress_line, warn
    from whatfits.service.cli.render_measurement import render_kernels

    _require_extra(python)
    try:
        with progress_line() as show:
            found = time_kernels(
                MeasureDevice(device),
                timeout_seconds=timeout,
                python=python or sys.executable,
                on_kernel=lambda kernel: show(f"{kernel.kernel} {kernel.shape}"),
            )
    except NoKernelsError as error:
        raise MeasureRunError(f"kernels were not timed: {error}") from error
    if as_json:
        print_json(found)
    else:
        render_kernels(found)
    if not found.complete:
        warn(f"not all kernels ran within {timeout:g} s")


def _require_extra(python: str | None) -> None:
    from whatfits.service.cli.failures import MissingExtraError
    from whatfits.service.measure_child import missing_extra

    missing = missing_extra() if python is None else None
    if missing is not None:
        raise MissingExtraError(missing)


def _failure_of(measurement: "Measurement") -> Exception:
    """What went wrong, as the error whose exit status says whose fault it is."""
    from whatfits.estimator.errors import InputError
    from whatfits.estimator.specs.measurement import FailureKind
    from whatfits.service.cli.failures import MeasureRunError

    failure = measurement.failure
    if failure is None:
        return MeasureRunError("the measurement was stopped")
    if failure.kind is FailureKind.REFUSED:
        return InputError(failure.field or "SPEC", None, "a run that is measured", reason=failure.message)
    return MeasureRunError(f"not measured ({failure.kind}): {failure.message}")
