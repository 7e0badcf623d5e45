"""Every row beside its estimate: published ones, our recordings, and recorded smallest caps."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.bert import STACK, Rule, estimate_trainer_row, of_trainer
from benchmarks.accuracy.eligibility import eligibility
from benchmarks.accuracy.evaluate import Answer, Interpreters, answer, evaluate, prepare
from benchmarks.accuracy.litgpt import LitgptError, litgpt_allocated
from benchmarks.accuracy.published_runs import run_of
from benchmarks.accuracy.recordings import (
    PARTS,
    RecordedRow,
    load_caps,
    load_recordings,
    measured,
    recorded_reason,
    run_of_recording,
)
from benchmarks.accuracy.results import TODAYS_SOFTMAX, TRAINER_DEVICE, Comparison, NotRun
from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.catalog.published import PublishedRow, Quantity, load_published
from whatfits.estimator.errors import WhatfitsError
from whatfits.profiler.trace.child_process import TraceError

__all__ = ["compare_caps", "compare_published", "compare_recordings", "compare_trainer", "post_hoc_rows"]

Outcome = list[Comparison | NotRun]
FAILURES = (WhatfitsError, TraceError)
BOUNDARY = (0.90, 0.97, 1.00, 1.03, 1.10)
"""Memory limits, as multiples of the smallest that really suffices, at which the verdict is asked for."""
MEASURED_CONTEXT = 804_061_184
"""What a fresh process held beside its segments after a whole training run on the H100: the first case of `speed`,
device memory in use less segments (805 to 922 million bytes in later cases of the same process)."""
_HALF_MIB = 1 << 19
"""Half the last digit of a figure printed as 14949 MB, which are MiB."""
_PRINTED_DIGIT = 0.005e9
"""Half the last digit of a figure printed as 17.51 GB."""


def post_hoc_rows() -> frozenset[str]:
    """Rows from whose residuals a rule was found."""
    rules = json.loads(Path(__file__).with_name("post_hoc.json").read_text())["rules"]
    return frozenset(row for rule in rules for row in rule["rows"])


def compare_published(interpreters: Interpreters, litgpt: Path | None) -> Outcome:
    """All published rows but the Trainer's: compared, or listed with the reason."""
    found: Outcome = []
    for row in load_published().values():
        if of_trainer(row):
            continue
        source = row.source.partition("#")[0].partition(" (")[0]
        ruling = eligibility(row)
        if ruling.reason is not None:
            found.append(NotRun(row=row.id, source=source, reason=ruling.reason))
        elif ruling.needs == "litgpt":
            found.append(_litgpt(row, source, litgpt))
        else:
            found.append(_published(row, source, interpreters))
    return found


def _published(row: PublishedRow, source: str, interpreters: Interpreters) -> Comparison | NotRun:
    try:
        ours = evaluate(run_of(row), row.stack, interpreters)
    except FAILURES as error:
        return NotRun(row=row.id, source=source, reason=f"not answered: {error}"[:300])
    _tell(row.id, ours)
    return _with_printed(row, source, ours.allocated, ours.verdict, ours.how)


def compare_trainer() -> list[Comparison]:
    """BERT-large's device totals, with every rule of its stack and without the one found from residuals.

    These rows were added after the eligible set had been fixed, whose rule leaves their architecture out.
    """
    found = []
    for row in filter(of_trainer, load_published().values()):
        (reading,) = (r for r in row.measured if r.quantity is Quantity.DEVICE_USED)
        printed = reading.nbytes
        assert printed is not None, "the page prints MiB"
        with_all = Comparison(
            row=row.id,
            source=row.source,
            quantity=TRAINER_DEVICE,
            measured=printed,
            estimate=estimate_trainer_row(row).device,
            how="direct trace",
            post_hoc=row.id in post_hoc_rows(),
            rounding=_HALF_MIB / printed,
        )
        todays = estimate_trainer_row(row, STACK - {Rule.SOFTMAX_INPUT}).device
        found += [with_all, replace(with_all, quantity=TODAYS_SOFTMAX, estimate=todays, post_hoc=False)]
        print(f"{row.id}: {with_all.estimate:,.0f} bytes, {with_all.error:+.3%}", file=sys.stderr)
    return found


def _litgpt(row: PublishedRow, source: str, checkout: Path | None) -> Comparison | NotRun:
    if checkout is None:
        reason = "not run: needs a checkout of lit-gpt at the row's commit (make accuracy LITGPT=path)"
        return NotRun(row=row.id, source=source, reason=reason)
    try:
        allocated = litgpt_allocated(row, checkout)
    except LitgptError as error:
        return NotRun(row=row.id, source=source, reason=f"not run: {error}")
    print(f"{row.id}: {allocated:,} bytes", file=sys.stderr)
    if row.out_of_memory:
        return _out_of_memory(row, source, allocated)
    return _with_printed(row, source, allocated, None, "direct trace")


def _out_of_memory(row: PublishedRow, source: str, allocated: int) -> Comparison:
    """A row that ran out of memory, beside the device's total: the estimate has to be above it."""
    assert row.gpu_catalog is not None, "the rule lets no row without a GPU through"
    total = find_gpu(row.gpu_catalog).total_bytes
    assert total is not None, "GPUs of published rows have a known total"
    return Comparison(
        row=row.id,
        source=source,
        quantity="out of memory",
        measured=total,
        estimate=allocated,
        verdict="no" if allocated > total else "yes",
        how="direct trace",
    )


def _with_printed(
    row: PublishedRow, source: str, allocated: int, verdict: str | None, how: str
) -> Comparison:
    (reading,) = (r for r in row.measured if r.quantity is Quantity.PEAK_ALLOCATED)
    printed = reading.nbytes
    assert printed is not None, "the rule lets no figure without a unit through"
    return Comparison(
        row=row.id,
        source=source,
        quantity="peak_allocated",
        measured=printed,
        estimate=allocated,
        verdict=verdict,
        how=how,
        post_hoc=row.id in post_hoc_rows(),
        rounding=_PRINTED_DIGIT / printed,
    )


def compare_recordings(interpreters: Interpreters, parts: tuple[str, ...] = tuple(PARTS)) -> Outcome:
    """Recorded training steps: allocated, reserved, requested per phase, and time where it was measured alone."""
    found: Outcome = []
    for row in load_recordings():
        if row.part not in parts:
            continue
        reason = recorded_reason(row)
        if reason is None:
            found += _recorded(row, interpreters)
        else:
            found.append(NotRun(row=row.id, source=_source(row), reason=reason))
    return found


def _recorded(row: RecordedRow, interpreters: Interpreters) -> Outcome:
    try:
        ours = evaluate(run_of_recording(row), row.stack, interpreters)
    except FAILURES as error:
        return [NotRun(row=row.id, source=_source(row), reason=f"not answered: {error}"[:300])]
    _tell(row.id, ours)
    truth = measured(row)
    one = Comparison(
        row=row.id,
        source=_source(row),
        quantity="peak_allocated",
        measured=truth.peak_allocated,
        estimate=ours.allocated,
        verdict=ours.verdict,
        how=ours.how,
    )
    found: Outcome = [one]
    found.append(replace(one, quantity="peak_reserved", measured=truth.peak_reserved, estimate=ours.reserved))
    phases = dict(ours.requested_by_phase)
    if "loss" not in truth.requested_by_phase:  # the recorder marks no loss inside peft's model
        phases["forward"] = max(phases["forward"], phases["loss"])
    for phase, requested in truth.requested_by_phase.items():
        name = f"requested in {phase}"
        found.append(replace(one, quantity=name, measured=requested, estimate=phases[phase]))
    if truth.step_seconds is not None:
        low, median, high = ours.step_seconds
        found.append(
            replace(
                one, quantity="step_time", measured=truth.step_seconds, estimate=median, low=low, high=high
            )
        )
    return found


def compare_caps(interpreters: Interpreters) -> tuple[Outcome, list[dict[str, Any]]]:
    """Smallest sufficient caps, and the verdicts at memory limits around them."""
    found: Outcome = []
    verdicts: list[dict[str, Any]] = []
    for row, _, completes_at in load_caps():
        source = "gpu_recordings/caps"
        try:
            prepared = prepare(run_of_recording(row), row.stack, interpreters)
        except FAILURES as error:
            found.append(NotRun(row=row.id, source=source, reason=f"not answered: {error}"[:300]))
            continue
        free = answer(prepared)
        _tell(row.id, free)
        required = Comparison(
            row=row.id,
            source=source,
            quantity="smallest sufficient cap",
            measured=completes_at,
            estimate=free.required,
            how=free.how,
        )
        device = replace(
            required,
            quantity="device memory needed",
            measured=completes_at + MEASURED_CONTEXT,
            estimate=free.device_median,
            low=free.device_low,
            high=free.device_high,
        )
        found += [required, device]
        for share in BOUNDARY:
            limit = round(device.measured * share)
            verdicts.append({"row": row.id, "share": share, "verdict": answer(prepared, limit).verdict})
    return found, verdicts


def _source(row: RecordedRow) -> str:
    return f"gpu_recordings/{row.part}"


def _tell(name: str, answer: Answer) -> None:
    print(f"{name[:100]}: {answer.allocated:,} bytes, {answer.how}, {answer.seconds:.1f} s", file=sys.stderr)
