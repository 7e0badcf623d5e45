"""The composition root: API, pages and one local agent, served to this machine alone."""

import uvicorn
from fastapi import FastAPI

from whatfits.service.api.middleware import LoopbackHostMiddleware
from whatfits.service.app import create_app
from whatfits.service.domain.planner import Planner
from whatfits.service.local_agent import LocalAgent
from whatfits.service.logs import configure_logging
from whatfits.service.settings import Settings, check_host
from whatfits.web.client import connect_in_process
from whatfits.web.routes import add_pages

__all__ = ["build_server_app", "configure_logging", "run"]


def build_server_app(
    settings: Settings, *, planner: Planner | None = None, local_agent: LocalAgent | None = None
) -> FastAPI:
    """The API with the pages mounted, which call the API without a network."""
    app = create_app(settings, planner=planner, local_agent=local_agent)
    add_pages(app, connect_in_process(app))
    return app


def run(host: str, port: int, *, agent: bool = True) -> None:
    """Serve until interrupted; `agent` has this machine measure, too.

    Raises:
        InputError: `host` can be reached from other machines.
    """
    settings = Settings(host=host, port=port)
    check_host(settings.host, published_on=settings.published_on)
    configure_logging(json=settings.log_json)
    app = build_server_app(settings, local_agent=LocalAgent(settings) if agent else None)
    guarded = LoopbackHostMiddleware(app)
    uvicorn.run(guarded, host=settings.host, port=settings.port, server_header=False)
