"""The OpenAPI description: FastAPI's own, with the errors as they really are, problem documents."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from whatfits.service.problems import PROBLEM_MEDIA_TYPE, FieldProblem, Problem

__all__ = ["DescribedApi"]

_QUESTION_ERRORS = {
    "400": "The body is not JSON",
    "413": "The body is too large",
    "415": "The body is not sent as JSON",
    "422": "A value cannot be used, or is not modelled yet",
    "503": "Too many models are being traced for other questions",
}
_STORAGE_ERRORS = {
    "503": "The database does not answer, or too many models are being traced",
    "507": "The database's disk is full",
}
_SCHEMA_REF = "#/components/schemas/{model}"


class DescribedApi(FastAPI):
    """FastAPI whose description lists problem documents instead of FastAPI's validation errors."""

    # An OpenAPI document is JSON.
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _with_problems(super().openapi())
        return self.openapi_schema


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(Problem, "serialization"), (FieldProblem, "serialization")], ref_template=_SCHEMA_REF
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas.update(definitions["$defs"])
    for operations in document["paths"].values():
        for operation in operations.values():
            _add_problem_responses(operation)
    return document


def _add_problem_responses(operation: dict[str, Any]) -> None:
    """Those that the route declares, those of every question, and the one that nobody expects."""
    responses = operation["responses"]
    errors = {status: body["description"] for status, body in responses.items() if status[0] in "45"}
    if "422" in errors:
        errors["422"] = _QUESTION_ERRORS["422"]
    if "requestBody" in operation:
        errors |= _QUESTION_ERRORS
    if operation["tags"] == ["measurements"]:
        errors |= _STORAGE_ERRORS
    for status, description in {**errors, "500": "The server met a problem of its own"}.items():
        schema = {"$ref": _SCHEMA_REF.format(model=Problem.__name__)}
        responses[status] = {"description": description, "content": {PROBLEM_MEDIA_TYPE: {"schema": schema}}}
