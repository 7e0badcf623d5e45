"""Every error as an RFC 9457 problem document (`application/problem+json`).

One table maps what went wrong to a stable type URI, a title and a status:

    broken JSON                        -> 400 invalid-json
    unknown path / wrong method        -> 404 not-found / 405 method-not-allowed
    body too large                     -> 413 body-too-large
    body not JSON                      -> 415 unsupported-media-type
    invalid value (`InputError`, pydantic) -> 422 invalid-input
    valid but not modelled yet (`UnsupportedError`) -> 422 unsupported
    sent to another name than loopback -> 421 misdirected
    too many models being traced       -> 503 busy
    contradicts what is stored         -> 409 conflict
    no agent has the device            -> 409 no-agent
    the database is locked or away     -> 503 storage-unavailable
    the database's disk is full        -> 507 storage-full
    the database fails otherwise       -> 500 storage-failed
    anything else                      -> 500 internal-error, without a trace of the code

The type URIs are names, not addresses: `urn:whatfits:problem:<slug>`.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

PROBLEM_MEDIA_TYPE = "application/problem+json"
_LONGEST_VALUE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemType:
    """A kind of problem: its name in the type URI, its title and its status."""

    slug: str
    title: str
    status: HTTPStatus

    @property
    def uri(self) -> str:
        return f"urn:whatfits:problem:{self.slug}"


INVALID_JSON = ProblemType(slug="invalid-json", title="Not JSON", status=HTTPStatus.BAD_REQUEST)
NOT_FOUND = ProblemType(slug="not-found", title="No such resource", status=HTTPStatus.NOT_FOUND)
METHOD_NOT_ALLOWED = ProblemType(
    slug="method-not-allowed", title="Method not allowed", status=HTTPStatus.METHOD_NOT_ALLOWED
)
BODY_TOO_LARGE = ProblemType(
    slug="body-too-large", title="Body too large", status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE
)
UNSUPPORTED_MEDIA_TYPE = ProblemType(
    slug="unsupported-media-type", title="Body is not JSON", status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE
)
INVALID_INPUT = ProblemType(
    slug="invalid-input", title="Invalid input", status=HTTPStatus.UNPROCESSABLE_ENTITY
)
UNSUPPORTED = ProblemType(
    slug="unsupported", title="Valid, but not modelled yet", status=HTTPStatus.UNPROCESSABLE_ENTITY
)
MISDIRECTED = ProblemType(
    slug="misdirected", title="Sent to another host", status=HTTPStatus.MISDIRECTED_REQUEST
)
BUSY = ProblemType(slug="busy", title="Busy", status=HTTPStatus.SERVICE_UNAVAILABLE)
CONFLICT = ProblemType(slug="conflict", title="Contradicts what is stored", status=HTTPStatus.CONFLICT)
NO_AGENT = ProblemType(slug="no-agent", title="No agent has such a device", status=HTTPStatus.CONFLICT)
STORAGE_UNAVAILABLE = ProblemType(
    slug="storage-unavailable", title="The database is not available", status=HTTPStatus.SERVICE_UNAVAILABLE
)
STORAGE_FULL = ProblemType(
    slug="storage-full", title="The database's disk is full", status=HTTPStatus.INSUFFICIENT_STORAGE
)
STORAGE_FAILED = ProblemType(
    slug="storage-failed", title="The database failed", status=HTTPStatus.INTERNAL_SERVER_ERROR
)
INTERNAL_ERROR = ProblemType(
    slug="internal-error", title="Internal error", status=HTTPStatus.INTERNAL_SERVER_ERROR
)


class FieldProblem(BaseModel):
    """One thing wrong with the request: where, what stood there, what is accepted."""

    model_config = ConfigDict(frozen=True)

    pointer: str | None
    """JSON pointer (RFC 6901) into the request body; "" is the whole body, null a query parameter."""
    field: str
    """The same place with dots, as the command line writes it; or the query parameter."""
    value: Any = None  # whatever JSON the caller sent, shortened
    detail: str
    """The problem in one sentence."""
    accepted: str | None = None
    suggestions: tuple[str, ...] = ()
    """Near matches, best first."""


class Problem(BaseModel):
    """RFC 9457 problem document; `errors` is our extension."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: tuple[FieldProblem, ...] = Field(default=())


class ProblemResponse(Response):
    """A problem document on the wire."""

    media_type = PROBLEM_MEDIA_TYPE


def build_problem_response(
    kind: ProblemType,
    *,
    detail: str,
    instance: str,
    errors: tuple[FieldProblem, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Build the response for a problem of `kind`.

    Written in ASCII, so that half a surrogate pair echoed from a request cannot break the answer.
    """
    problem = Problem(
        type=kind.uri,
        title=kind.title,
        status=int(kind.status),
        detail=detail,
        instance=instance,
        errors=errors,
    )
    body = json.dumps(problem.model_dump(), allow_nan=False)
    return ProblemResponse(body.encode("ascii"), status_code=int(kind.status), headers=dict(headers or {}))


def shorten_value(value: object) -> object:
    """Return `value` as JSON can carry it, cut where long, for showing a caller what was sent."""
    if isinstance(value, str):
        return _shorten_text(value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return _shorten_text(reprlib.repr(value))
    return value if len(text) <= _LONGEST_VALUE else _shorten_text(text)


def build_pointer(location: tuple[str | int, ...]) -> str:
    """Return the JSON pointer (RFC 6901, section 3) of a location in the body."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _shorten_text(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
