"""The one place where exceptions become problem documents."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from fastapi import FastAPI, Request, params
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs.validation import describe_errors
from whatfits.service import problems
from whatfits.service.domain.measurements import NoAgentError
from whatfits.service.problems import (
    FieldProblem,
    ProblemType,
    build_pointer,
    build_problem_response,
    shorten_value,
)
from whatfits.service.storage.errors import (
    ConflictError,
    NotFoundError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from whatfits.service.trace_limits import TracingBusyError

__all__ = ["register_problem_handlers"]

Location = tuple[str | int, ...]

_HTTP_PROBLEMS = {
    HTTPStatus.BAD_REQUEST: (problems.INVALID_JSON, "The request body cannot be read as JSON."),
    HTTPStatus.NOT_FOUND: (
        problems.NOT_FOUND,
        "There is nothing at {path}; /api/v1/openapi.json lists what there is.",
    ),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        problems.METHOD_NOT_ALLOWED,
        "{path} does not answer {method}; it answers {allow}.",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        problems.BODY_TOO_LARGE,
        "The request body is larger than the {limit} bytes this server reads.",
    ),
}
"""What the framework itself refuses: the problem, and its sentence."""

_PROBLEMS_BY_ERROR: dict[type[Exception], ProblemType] = {
    NotFoundError: problems.NOT_FOUND,
    ConflictError: problems.CONFLICT,
    NoAgentError: problems.NO_AGENT,
    StorageUnavailableError: problems.STORAGE_UNAVAILABLE,
    StorageFullError: problems.STORAGE_FULL,
    StorageError: problems.STORAGE_FAILED,
}
"""Errors that say all there is to say; the nearest class counts."""


def register_problem_handlers(app: FastAPI) -> None:
    """Answer every expected error of `app` with a problem document."""
    app.exception_handler(HTTPException)(_answer_http_error)
    app.exception_handler(RequestValidationError)(_answer_validation_error)
    app.exception_handler(InputError)(_answer_input_error)
    app.exception_handler(TracingBusyError)(_answer_busy)
    for error, kind in _PROBLEMS_BY_ERROR.items():
        app.exception_handler(error)(_answer_with(kind))


def _answer_http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_at(request))
    kind, sentence = _HTTP_PROBLEMS[HTTPStatus(error.status_code)]
    detail = sentence.format(
        path=request.url.path,
        method=request.method,
        allow=headers.get("Allow", "others"),
        limit=request.app.state.settings.max_body_bytes,
    )
    return build_problem_response(kind, detail=detail, instance=request.url.path, headers=headers)


def _methods_at(request: Request) -> list[str]:
    """The methods that the path answers; the router names those of the first route alone."""
    return [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _answer_validation_error(request: Request, error: RequestValidationError) -> Response:
    path = request.url.path
    broken = next((detail for detail in error.errors() if detail["type"] == "json_invalid"), None)
    if broken is not None:
        detail = f"The request body is not JSON: {broken['ctx']['error']} at character {broken['loc'][-1]}."
        return build_problem_response(problems.INVALID_JSON, detail=detail, instance=path)
    if isinstance(error.body, bytes):
        detail = "The request body must be JSON, sent with Content-Type: application/json."
        return build_problem_response(problems.UNSUPPORTED_MEDIA_TYPE, detail=detail, instance=path)
    errors = (
        *_describe_body_errors(error, _find_spec(request)),
        *_describe_other_errors(error, _find_options(request)),
    )
    more = f" ({len(errors) - 1} more in errors)" if len(errors) > 1 else ""
    return build_problem_response(
        problems.INVALID_INPUT, detail=errors[0].detail + more, instance=path, errors=errors
    )


def _answer_busy(request: Request, error: TracingBusyError) -> Response:
    headers = {"Retry-After": str(error.retry_after_seconds)}
    return build_problem_response(
        problems.BUSY, detail=str(error), instance=request.url.path, headers=headers
    )


def _answer_with(kind: ProblemType) -> Callable[[Request, Exception], Response]:
    """A handler for errors that are sentences for whoever asked."""

    def answer(request: Request, error: Exception) -> Response:
        return build_problem_response(kind, detail=str(error), instance=request.url.path)

    return answer


def _answer_input_error(request: Request, error: InputError) -> Response:
    kind = problems.UNSUPPORTED if isinstance(error, UnsupportedError) else problems.INVALID_INPUT
    place = None if error.field in request.query_params else _place_of_field(error.field)
    described = _describe_field(place, error)
    return build_problem_response(kind, detail=str(error), instance=request.url.path, errors=(described,))


def _describe_field(place: Location | None, error: InputError) -> FieldProblem:
    return FieldProblem(
        pointer=None if place is None else build_pointer(place),
        field=error.field,
        value=shorten_value(error.value),
        detail=str(error),
        accepted=error.accepted,
        suggestions=error.suggestions,
    )


def _place_of_field(field: str) -> Location:
    """The keys and indices in a path such as `ranks[0]` or `training.seq_len`; a point of a matrix is no place of its own."""
    if field.startswith("matrix["):
        return ("matrix",)
    return tuple(part.removesuffix("]") for part in field.replace("[", ".").split("."))


def _describe_body_errors(
    error: RequestValidationError, spec: type[BaseModel] | None
) -> tuple[FieldProblem, ...]:
    """One field problem for each place in the body that is wrong; none for a list whose items are."""
    details = _details(error, "body")
    places = [_place(detail, error.body) for detail in details]
    return tuple(
        _describe_field(place, cause)
        for place, detail in zip(places, details, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places)
        for cause in describe_errors([detail], spec)
    )


def _describe_other_errors(
    error: RequestValidationError, options: type[BaseModel] | None
) -> tuple[FieldProblem, ...]:
    """One field problem for each query parameter, header or part of the path that is wrong."""
    details = [detail for source in ("query", "header", "path") for detail in _details(error, source)]
    return tuple(_describe_field(None, cause) for cause in describe_errors(details, options))


# Pydantic's error details hold whatever was sent.
def _details(error: RequestValidationError, source: str) -> list[dict[str, Any]]:
    """The errors of one part of a request, located within it."""
    return [{**x, "loc": tuple(x["loc"][1:])} for x in error.errors() if x["loc"][0] == source]


# Pydantic's error details, and the body, hold whatever was sent.
def _place(detail: Mapping[str, Any], body: Any) -> Location:
    """Keys and indices from the body to the value: pydantic's location without the names of union branches."""
    place: list[str | int] = []
    value = body
    location: Sequence[str | int] = detail["loc"]
    for index, part in enumerate(location):
        if _holds(value, part):
            value = value[part]
        elif detail["type"] != "missing" or index != len(location) - 1:
            continue
        place.append(part)
    return tuple(place)


def _holds(value: object, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _find_options(request: Request) -> type[BaseModel] | None:
    """The model of the query parameters that the endpoint of `request` takes."""
    hints = get_type_hints(request.scope["endpoint"], include_extras=True).values()
    annotated = (get_args(hint) for hint in hints if get_origin(hint) is Annotated)
    return next(
        (
            kind
            for kind, *extras in annotated
            if isinstance(kind, type)
            and issubclass(kind, BaseModel)
            and any(isinstance(extra, params.Query) for extra in extras)
        ),
        None,
    )


def _find_spec(request: Request) -> type[BaseModel] | None:
    """The spec that the endpoint of `request` takes as its body."""
    hints = get_type_hints(request.scope["endpoint"])
    hints.pop("return", None)
    return next(
        (hint for hint in hints.values() if isinstance(hint, type) and issubclass(hint, BaseModel)), None
    )
