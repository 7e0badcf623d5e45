"""The composition root: API, pages and one local agent, served on this machine's loopback."""

import uvicorn
from fastapi import FastAPI

from whatfits.service.app import create_app
from whatfits.service.domain.planner import Planner
from whatfits.service.local_agent import LocalAgent
from whatfits.service.logs import configure_logging
from whatfits.service.settings import Settings, check_loopback
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
        InputError: `host` is not a loopback address.
    """
    settings = Settings(host=check_loopback(host), port=port)
    configure_logging(json=settings.log_json)
    app = build_server_app(settings, local_agent=LocalAgent(settings) if agent else None)
    uvicorn.run(app, host=settings.host, port=settings.port, server_header=False)
