"""Measurements of a database, for a person or as the REST API's JSON: listed, shown, cancelled, followed."""

import time
from statistics import median

import typer
from sqlalchemy import Engine as Database

from whatfits.estimator.specs import Measurement, MeasurementStatus, Progress
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.service.api.measurement_schemas import MeasurementList, describe_measurement
from whatfits.service.cli.exit_codes import ExitCode
from whatfits.service.cli.output import build_table, print_json, print_rendered, warn
from whatfits.service.cli.render_measurement import render_measurement
from whatfits.service.domain.measurements import cancel
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.measurements import FINAL_STATUSES, MeasurementFilters, MeasurementStore
from whatfits.service.storage.rows import model_label

_POLL_SECONDS = 0.5


def list_measurements(
    database: Database, filters: MeasurementFilters, *, cursor: str | None, limit: int, as_json: bool
) -> None:
    """Print a page."""
    page = MeasurementStore(database).list(filters, cursor=cursor, limit=limit)
    if as_json:
        items = tuple(describe_measurement(item) for item in page.items)
        print_json(MeasurementList(items=items, next_cursor=page.next_cursor))
        return
    right = ("requested", "estimated", "step")
    table = build_table("id", "status", "queue", "model", "optimizer", *right, "outcome", right=right)
    for item in page.items:
        table.add_row(*_row(item))
    print_rendered(table)
    if page.next_cursor is not None:
        print_rendered("", f"there are more: --cursor {page.next_cursor}")


def show_measurement(database: Database, measurement_id: str, *, as_json: bool) -> None:
    """Print one."""
    measurement = MeasurementStore(database).get(measurement_id)
    if as_json:
        print_json(describe_measurement(measurement))
        return
    print_rendered(f"{measurement.id}: {measurement.status} in {measurement.queue}")
    if measurement.warning is not None:
        warn(measurement.warning)
    if measurement.failure is not None:
        print_rendered(f"{measurement.failure.kind}: {measurement.failure.message}")
    if measurement.result is not None:
        render_measurement(measurement)


def cancel_measurement(database: Database, measurement_id: str, *, as_json: bool) -> None:
    """Cancel one, and print what it is now."""
    from whatfits.service.engine import Engine

    jobs = Engine(database.url.render_as_string(hide_password=False))
    try:
        cancel(measurement_id, store=MeasurementStore(database), claims=ClaimStore(database), jobs=jobs)
    finally:
        jobs.close()
    measurement = MeasurementStore(database).get(measurement_id)
    if as_json:
        print_json(describe_measurement(measurement))
    elif measurement.status is MeasurementStatus.CANCELLED:
        print_rendered("cancelled")
    else:
        print_rendered("its agent is told to end it")


def watch_measurement(database: Database, measurement_id: str, *, as_json: bool) -> None:
    """Print progress on standard error until it is final, then the measurement.

    Raises:
        typer.Exit: It did not succeed.
    """
    store, claims = MeasurementStore(database), ClaimStore(database)
    seen = 0
    while True:
        is_final = claims.read(measurement_id).is_final
        for number, report in store.progress_after(measurement_id, seen):
            seen = number
            typer.echo(_word(report), err=True)
        if is_final:
            break
        time.sleep(_POLL_SECONDS)
    show_measurement(database, measurement_id, as_json=as_json)
    if claims.read(measurement_id).status is not MeasurementStatus.SUCCEEDED:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)


def _row(item: Measurement) -> tuple[str, ...]:
    result, estimate = item.result, item.estimate
    expected = None if estimate is None else estimate.memory.peak_requested_bytes
    steps = () if result is None else result.times.step
    return (
        item.id,
        str(item.status),
        item.queue,
        model_label(item.request.spec),
        str(item.request.spec.training.optimizer.name),
        "-" if result is None else format_bytes(result.peak_requested_bytes),
        "-" if expected is None else format_bytes(expected),
        format_seconds(median(steps)) if steps else "-",
        _word_end(item),
    )


def _word_end(item: Measurement) -> str:
    if item.result is not None:
        return str(item.result.outcome)
    if item.failure is not None:
        return str(item.failure.kind)
    return "" if item.status in FINAL_STATUSES else f"attempt {item.attempts}" if item.attempts else "waiting"


def _word(report: Progress) -> str:
    counted = f" {report.done} of {report.total}" if report.total else ""
    return f"{report.stage}{counted}{': ' + report.message if report.message else ''}"
