"""The REST API as an ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from whatfits.service.api.errors import register_problem_handlers
from whatfits.service.api.middleware import (
    BodyLimitMiddleware,
    SecurityHeadersMiddleware,
    UnexpectedErrorMiddleware,
)
from whatfits.service.api.openapi import DescribedApi
from whatfits.service.api.routes import agents, campaigns, catalog, estimates, health, measurements, plans
from whatfits.service.backend import Backend
from whatfits.service.domain.planner import Planner
from whatfits.service.local_agent import LocalAgent
from whatfits.service.settings import Settings

__all__ = ["API_PREFIX", "create_app"]

API_PREFIX = "/api/v1"
_DESCRIPTION = """What training runs fit on which GPUs, and which of them is fastest.

`POST /api/v1/plans` searches; `POST /api/v1/estimates` answers for one run; `POST /api/v1/measurements` has one carried out
by an agent on its device. Every error is an RFC 9457 problem document
(`application/problem+json`) whose `errors` give a JSON pointer, the value, what is accepted and near matches.
There is no interactive page for this description, because the usual ones load code from elsewhere."""


def create_app(
    settings: Settings, *, planner: Planner | None = None, local_agent: LocalAgent | None = None
) -> FastAPI:
    """Build the application.

    Args:
        settings: What the server was told.
        planner: Who answers; the estimator when left out.
        local_agent: Started once the database is open.
    """
    app = DescribedApi(
        title="whatfits",
        version=_own_version(),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{API_PREFIX}/openapi.json",
        lifespan=_warm_up,
    )
    app.state.settings = settings
    app.state.planner = planner if planner is not None else _default_planner(settings)
    app.state.backend = Backend(settings, app.state.planner, local_agent)
    for module in (estimates, plans, measurements, campaigns, agents, catalog, health):
        app.include_router(module.router, prefix=API_PREFIX)
    app.include_router(health.router, include_in_schema=False)
    register_problem_handlers(app)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    app.add_middleware(UnexpectedErrorMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    return app


@asynccontextmanager
async def _warm_up(app: FastAPI) -> AsyncIterator[None]:
    """Load catalogs and memory profiles before the first question, so that it is answered as fast as the next.

    The database is opened meanwhile.
    """
    planner: Planner = app.state.planner
    planner.warm_up()
    backend: Backend = app.state.backend
    backend.start()
    yield
    backend.stop()


def _default_planner(settings: Settings) -> Planner:
    # Imported here because an app that was given a planner needs none of the estimator's code.
    from whatfits.service.domain.estimator_planner import EstimatorPlanner  # noqa: PLC0415
    from whatfits.service.trace_limits import TraceLimits  # noqa: PLC0415  (as above)

    return EstimatorPlanner(
        TraceLimits(
            timeout_seconds=settings.trace_timeout_seconds,
            memory_bytes=settings.trace_memory_bytes,
            max_children=settings.max_traces,
        )
    )


def _own_version() -> str:
    try:
        return version("whatfits")
    except PackageNotFoundError:
        return "0+source"
