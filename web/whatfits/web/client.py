"""Typed calls to the REST API: over the network, or straight into the application in the same process."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx2
from pydantic import TypeAdapter

from whatfits.web.answers import Gpu, Model, Optimizer, Plan, Problem

__all__ = ["ApiClient", "ApiProblemError", "connect_in_process"]

_MODELS = TypeAdapter(tuple[Model, ...])
_GPUS = TypeAdapter(tuple[Gpu, ...])
_OPTIMIZERS = TypeAdapter(tuple[Optimizer, ...])


class ApiProblemError(Exception):
    """The API answered with a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class ApiClient:
    """The calls the pages make."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    # A request is any JSON object: the API is the one that checks it.
    async def create_plan(self, request: Mapping[str, Any]) -> Plan:
        """Ask for a plan.

        Raises:
            ApiProblemError: The API refused the question or could not answer it.
        """
        response = await self._http.post("/api/v1/plans", json=dict(request))
        if response.status_code != HTTPStatus.OK:
            raise ApiProblemError(Problem.model_validate_json(response.content))
        return Plan.model_validate_json(response.content)

    async def list_models(self) -> tuple[Model, ...]:
        return _MODELS.validate_python(await self._list_items("/api/v1/models"))

    async def list_gpus(self) -> tuple[Gpu, ...]:
        return _GPUS.validate_python(await self._list_items("/api/v1/gpus"))

    async def list_optimizers(self) -> tuple[Optimizer, ...]:
        return _OPTIMIZERS.validate_python(await self._list_items("/api/v1/optimizers"))

    # Items of any list; the caller's adapter validates them.
    async def _list_items(self, path: str) -> Any:
        response = await self._http.get(path)
        if response.status_code != HTTPStatus.OK:
            raise ApiProblemError(Problem.model_validate_json(response.content))
        return response.json()["items"]


# An ASGI application has no narrower type that both sides share.
def connect_in_process(app: Any) -> ApiClient:
    """A client that calls `app` without a network; an exception inside it becomes its 500 answer."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return ApiClient(httpx2.AsyncClient(transport=transport, base_url="http://whatfits"))
