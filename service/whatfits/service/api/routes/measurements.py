"""`/measurements`: real steps on a device, asked for, watched, listed and cancelled."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse

from whatfits.service.api.deps import MeasurementsDep
from whatfits.service.api.events import follow
from whatfits.service.api.measurement_schemas import (
    ListOptions,
    MeasurementEntry,
    MeasurementList,
    SubmitOptions,
    describe_measurement,
)
from whatfits.service.domain.measurements import Submission

__all__ = ["router"]

router = APIRouter(tags=["measurements"])
_RETRY_AFTER_SECONDS = "2"
_PING_SECONDS = 15
# The kind of FastAPI's parameter.
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such measurement"}}

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same body is the same measurement, however often it is sent.",
    ),
]
LastEventId = Annotated[
    int | None, Header(ge=0, le=2**31 - 1, description="Number of the last report that was seen.")
]


@router.post(
    "/measurements",
    status_code=202,
    summary="Measure a run on a device",
    responses={
        202: {"headers": {"Location": {"schema": {"type": "string"}}, "Retry-After": {"schema": {"type": "string"}}}},
        409: {"description": "No agent has such a device, or the key was used for another run"},
    },
)  # fmt: skip
def create_measurement(
    submission: Submission,
    options: Annotated[SubmitOptions, Query()],
    measurements: MeasurementsDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> MeasurementEntry:
    """Store the run and its estimate, and put it into the queue of its kind of device."""
    queue = options.when_unavailable == "queue"
    measurement = measurements.submit(
        submission, idempotency_key=idempotency_key, queue_when_unavailable=queue
    )
    response.headers["Location"] = request.url_for("read_measurement", measurement_id=measurement.id).path
    response.headers["Retry-After"] = _RETRY_AFTER_SECONDS
    return describe_measurement(measurement)


@router.get("/measurements", summary="Measurements, newest first")
def list_measurements(
    options: Annotated[ListOptions, Query()],
    measurements: MeasurementsDep,
    request: Request,
    response: Response,
) -> MeasurementList:
    """A page of those that the filters leave, each beside its estimate; `Link` leads to the next page."""
    page = measurements.list(options.filters(), cursor=options.cursor, limit=options.limit)
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    items = tuple(describe_measurement(item) for item in page.items)
    return MeasurementList(items=items, next_cursor=page.next_cursor)


@router.get("/measurements/{measurement_id}", summary="One measurement", responses=_UNKNOWN)
def read_measurement(measurement_id: str, measurements: MeasurementsDep) -> MeasurementEntry:
    """What was asked, what was expected, what came of it, and the difference."""
    return describe_measurement(measurements.get(measurement_id))


@router.delete(
    "/measurements/{measurement_id}",
    status_code=202,
    summary="Cancel a measurement",
    responses={**_UNKNOWN, 409: {"description": "It has ended"}},
)
def cancel_measurement(measurement_id: str, measurements: MeasurementsDep) -> MeasurementEntry:
    """Ends it at once where it waits; where it runs, its processes are ended within two seconds."""
    return describe_measurement(measurements.cancel(measurement_id))


@router.get(
    "/measurements/{measurement_id}/events",
    summary="Follow a measurement",
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **_UNKNOWN,
    },
)
async def follow_measurement(
    measurement_id: str, measurements: MeasurementsDep, last_event_id: LastEventId = None
) -> EventSourceResponse:
    """Server-sent events: `progress` reports with their numbers as ids, `status` changes, and `final`, the last one."""
    await run_in_threadpool(measurements.get, measurement_id)
    return EventSourceResponse(follow(measurements, measurement_id, last_event_id or 0), ping=_PING_SECONDS)
