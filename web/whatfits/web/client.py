"""Typed calls to the REST API: over the network, or straight into the application in the same process."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx2
from pydantic import TypeAdapter

from whatfits.web.answers import Gpu, Model, Optimizer, Plan, Problem
from whatfits.web.measurement_answers import Agent, Measurement, MeasurementList

__all__ = ["ApiClient", "ApiProblemError", "connect_in_process"]

_MODELS = TypeAdapter(tuple[Model, ...])
_GPUS = TypeAdapter(tuple[Gpu, ...])
_OPTIMIZERS = TypeAdapter(tuple[Optimizer, ...])
_AGENTS = TypeAdapter(tuple[Agent, ...])


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

    async def list_agents(self) -> tuple[Agent, ...]:
        return _AGENTS.validate_python(await self._list_items("/api/v1/agents"))

    async def list_measurements(self, filters: Mapping[str, str]) -> MeasurementList:
        """A page of measurements.

        Raises:
            ApiProblemError: A filter cannot be used.
        """
        return MeasurementList.model_validate_json(await self._read("/api/v1/measurements", filters))

    async def read_measurement(self, measurement_id: str) -> Measurement:
        """One measurement.

        Raises:
            ApiProblemError: There is none.
        """
        path = f"/api/v1/measurements/{quote(measurement_id, safe='')}"
        return Measurement.model_validate_json(await self._read(path))

    # Items of any list; the caller's adapter validates them.
    async def _list_items(self, path: str) -> Any:
        return json.loads(await self._read(path))["items"]

    async def _read(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        response = await self._http.get(path, params=query)
        if response.status_code != HTTPStatus.OK:
            raise ApiProblemError(Problem.model_validate_json(response.content))
        return response.content


# An ASGI application has no narrower type that both sides share.
def connect_in_process(app: Any) -> ApiClient:
    """A client that calls `app` without a network; an exception inside it becomes its 500 answer."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return ApiClient(httpx2.AsyncClient(transport=transport, base_url="http://whatfits"))
