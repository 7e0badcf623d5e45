"""A measurement as a stream of server-sent events: its progress, its changes of status, and its end.

`progress` events have the number of the report as their id, so that a client that comes back with Last-Event-ID misses
none and gets none twice. The last event is `final`; after it the stream ends.
"""

import asyncio
from collections.abc import AsyncIterator

from pydantic import BaseModel
from sse_starlette import ServerSentEvent

from whatfits.estimator.specs import Progress
from whatfits.service.api.measurement_schemas import StatusEvent, describe_measurement
from whatfits.service.domain.measurements import Measurements
from whatfits.service.storage.claims import Claim
from whatfits.service.storage.errors import StorageUnavailableError

__all__ = ["follow"]

_POLL_SECONDS = 0.3


async def follow(
    measurements: Measurements, measurement_id: str, after: int
) -> AsyncIterator[ServerSentEvent]:
    """Events from the report after a number to the end; a database that does not answer is waited for."""
    told: StatusEvent | None = None
    while True:
        try:
            claim, reports = await asyncio.to_thread(_look, measurements, measurement_id, after)
        except StorageUnavailableError:
            await asyncio.sleep(_POLL_SECONDS)
            continue
        status = StatusEvent(status=claim.status, agent=claim.agent, attempts=claim.attempts)
        if status != told and not claim.is_final:
            told = status
            yield _event("status", status)
        for number, report in reports:
            after = number
            yield _event("progress", report, number)
        if claim.is_final:
            measurement = await asyncio.to_thread(measurements.get, measurement_id)
            yield _event("final", describe_measurement(measurement))
            return
        await asyncio.sleep(_POLL_SECONDS)


def _look(
    measurements: Measurements, measurement_id: str, after: int
) -> tuple[Claim, tuple[tuple[int, Progress], ...]]:
    # The claim first: of a final measurement all reports are there.
    claim = measurements.claims.read(measurement_id)
    return claim, measurements.progress_after(measurement_id, after)


def _event(name: str, data: BaseModel, number: int | None = None) -> ServerSentEvent:
    id_ = None if number is None else str(number)
    return ServerSentEvent(event=name, data=data.model_dump_json(), id=id_)
