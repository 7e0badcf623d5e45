"""Write the measurements that come with the package, from our own recordings on a GPU.

    python benchmarks/shipped_measurements.py

Taken are the runs of `gpu_recordings/*/speed.jsonl.gz` that a RunSpec can say (accuracy/recordings.py has the rule): they ran
alone on the device, so their times mean something. Searches for the smallest cap are left out: their caps bind the
allocator alone, a RunSpec's also what lies outside it. Beside each stands what this version expects of the same run.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("estimator", "optim_impls", "profiler"))]

from benchmarks.accuracy.recordings import (  # noqa: E402 (the path is set above)
    FOLDER,
    PHASES,
    RecordedRow,
    load_recordings,
    recorded_reason,
    run_of_recording,
)
from whatfits.estimator.catalog import resolve_run  # noqa: E402 (the same)
from whatfits.estimator.errors import UnsupportedError  # noqa: E402 (the same)
from whatfits.estimator.estimate import estimate_run  # noqa: E402 (the same)
from whatfits.estimator.specs import (  # noqa: E402 (the same)
    Estimate,
    MeasuredEnvironment,
    Measurement,
    MeasurementResult,
    MeasurementStatus,
    MeasureRequest,
    PeakPhase,
    PhasePeaks,
    RunSpec,
    StepTimes,
    queue_name,
)
from whatfits.estimator.specs.measurement import DeviceReadings, MeasuredStep, MeasurementOutcome  # noqa: E402 (the same)

PART = "speed"
OUT = ROOT / "service/whatfits/service/storage/data" / f"{FOLDER.name}.jsonl.gz"
DRIVER = "580.159.04"
"""Source: gpu_recordings/README.md."""
WARMUP_STEPS = 1
"""The first step, which creates the optimizer's states."""
REFRESH_INTERVAL = 2
"""Of the recorder's GaLore runs: every second step, from the first."""
LIBRARIES = {"bnb": "bitsandbytes", "ao": "torchao", "po": "pytorch_optimizer", "galore": "galore_torch"}
"""The recorder's prefixes of optimizers, and the packages they stand for."""
MS_PER_SECOND = 1e3


def main() -> None:
    """Write the file."""
    lines = "".join(m.model_dump_json() + "\n" for m in convert())
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{OUT}: {lines.count(chr(10))} measurements, {OUT.stat().st_size} bytes")


def convert(*, with_estimates: bool = True) -> Iterator[Measurement]:
    """The recorded runs as measurements, in the order in which they ran."""
    header = _header()
    rows = [row for row in load_recordings() if row.part == PART]
    for number, row in enumerate(rows):
        if recorded_reason(row) is None:
            yield _measurement(row, number, header, with_estimate=with_estimates)


def _header() -> dict[str, Any]:
    """The first line of the recording: environment and date."""
    with gzip.open(FOLDER / f"{PART}.jsonl.gz", "rt", encoding="utf-8") as lines:
        content: dict[str, Any] = json.loads(next(lines))
        return content


def _measurement(
    row: RecordedRow, number: int, header: dict[str, Any], *, with_estimate: bool
) -> Measurement:
    question = run_of_recording(row)
    question["model"]["_name_or_path"] = row.spec["model"]
    run = resolve_run(RunSpec.model_validate(question)).run
    estimate = _estimate(run) if with_estimate else None
    request = MeasureRequest(
        spec=run, warmup_steps=WARMUP_STEPS, measured_steps=len(row.case.times) - WARMUP_STEPS
    )
    return Measurement(
        id=f"{FOLDER.name}-{PART}-{number:03}",
        status=MeasurementStatus.SUCCEEDED,
        queue=queue_name(request),
        request=request,
        estimate=estimate,
        result=_result(row, header["environment"], estimate),
        attempts=1,
        created_at=datetime.fromisoformat(header["date"]),
        source=f"{FOLDER.name}/{PART}.jsonl.gz",
    )


def _estimate(run: RunSpec) -> Estimate | None:
    try:
        return estimate_run(run)
    except UnsupportedError:
        return None


def _result(row: RecordedRow, environment: dict[str, Any], estimate: Estimate | None) -> MeasurementResult:
    phases = [phase for phase in row.case.phases if phase["step"] >= 0 and phase["phase"] in PHASES]
    times = _times(row)
    spec = row.spec
    tokens = spec["b"] * spec["s"] * spec.get("accum", 1)
    step_seconds = median(times.step)
    return MeasurementResult(
        outcome=MeasurementOutcome.COMPLETED,
        reached_step=len(row.case.times),
        reached_phase=None,
        num_layers=run_of_recording(row)["model"]["num_hidden_layers"],
        num_parameters=row.case.notes["num_params"],
        peaks=tuple(_peaks(row, phases)),
        peak_requested_bytes=max(phase["peak_requested"] for phase in phases),
        peak_allocated_bytes=max(phase["peak_allocated"] for phase in phases),
        peak_reserved_bytes=max(phase["peak_reserved"] for phase in phases),
        times=times,
        tokens_per_second=tokens / step_seconds,
        mfu=_mfu(estimate, tokens / step_seconds),
        refresh_interval=REFRESH_INTERVAL if _refreshes(row) else None,
        readings=DeviceReadings(
            context_bytes=environment["used_after_context"],
            num_alloc_retries=phases[-1]["retries"] - row.case.phases[0]["retries"],
        ),
        environment=_environment(row, environment),
        notes=_notes(row),
    )


def _mfu(estimate: Estimate | None, tokens_per_second: float) -> float | None:
    """MFU is in proportion to tokens per second, and the estimate has both."""
    time = None if estimate is None else estimate.time
    if time is None or time.mfu is None:
        return None
    return time.mfu * tokens_per_second / time.tokens_per_second


def _refreshes(row: RecordedRow) -> bool:
    return str(row.spec["optimizer"]).startswith("galore")


def _kind(row: RecordedRow, step: int) -> MeasuredStep:
    if step < WARMUP_STEPS:
        return MeasuredStep.FIRST
    refreshed = _refreshes(row) and step % REFRESH_INTERVAL == 0
    return MeasuredStep.REFRESH if refreshed else MeasuredStep.STEADY


def _times(row: RecordedRow) -> StepTimes:
    """Of the steps after the first; the recorder timed forward and loss as one, and clipping apart from the update."""
    seconds = [{name: value / MS_PER_SECOND for name, value in step.items()} for step in row.case.times]
    kinds = [_kind(row, step) for step in range(len(seconds))]
    steady = [parts for parts, kind in zip(seconds, kinds, strict=True) if kind is MeasuredStep.STEADY]
    refresh = [parts for parts, kind in zip(seconds, kinds, strict=True) if kind is MeasuredStep.REFRESH]
    return StepTimes(
        forward=tuple(parts["forward"] for parts in steady),
        loss=(),
        backward=tuple(parts["backward"] for parts in steady),
        optimizer_step=tuple(parts["optimizer"] + parts.get("update", 0.0) for parts in steady),
        step=tuple(sum(parts.values()) for parts in steady),
        refresh_step=tuple(sum(parts.values()) for parts in refresh),
    )


def _peaks(row: RecordedRow, phases: list[dict[str, Any]]) -> Iterator[PhasePeaks]:
    """The highest counters of each kind of step and phase."""
    groups: dict[tuple[MeasuredStep, str], list[dict[str, Any]]] = {}
    for phase in phases:
        groups.setdefault((_kind(row, phase["step"]), PHASES[phase["phase"]]), []).append(phase)
    for (kind, name), found in groups.items():
        yield PhasePeaks(
            step=kind,
            phase=PeakPhase(name),
            peak_requested_bytes=max(phase["peak_requested"] for phase in found),
            peak_allocated_bytes=max(phase["peak_allocated"] for phase in found),
            peak_active_bytes=max(phase["peak_active"] for phase in found),
            peak_reserved_bytes=max(phase["peak_reserved"] for phase in found),
        )


def _environment(row: RecordedRow, environment: dict[str, Any]) -> MeasuredEnvironment:
    packages = {"torch": environment["torch"], "transformers": row.case.notes["transformers"]}
    library = LIBRARIES.get(str(row.spec["optimizer"]).split(":")[0])
    names = [name for name in (library, "peft" if row.spec.get("lora") else None) if name is not None]
    return MeasuredEnvironment(
        device_name=environment["gpu"],
        device_total_bytes=environment["total_memory"],
        compute_capability=environment["capability"],
        driver=DRIVER,
        packages=packages | {name: environment[name] for name in names},
        torch_cuda=environment["cuda"],
        python=environment["python"],
        platform="Linux",
    )


def _notes(row: RecordedRow) -> tuple[str, ...]:
    notes = [f"Recorded with the optimizer {row.spec['optimizer']} before this form of measurement existed."]
    notes.append("Forward times include the loss.")
    if row.spec.get("lora"):
        notes.append("Peaks of the forward phase include the loss.")
    return tuple(notes)


if __name__ == "__main__":
    main()
