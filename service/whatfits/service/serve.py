"""The composition root: the API and the pages in one application, served to this machine alone."""

import structlog
import uvicorn
from fastapi import FastAPI

from whatfits.service.api.middleware import LoopbackHostMiddleware
from whatfits.service.app import create_app
from whatfits.service.domain.planner import Planner
from whatfits.service.settings import Settings, check_host
from whatfits.web.client import connect_in_process
from whatfits.web.routes import add_pages

__all__ = ["build_server_app", "configure_logging", "run"]


def build_server_app(settings: Settings, *, planner: Planner | None = None) -> FastAPI:
    """The API with the pages mounted, which call the API without a network."""
    app = create_app(settings, planner=planner)
    add_pages(app, connect_in_process(app))
    return app


def run(host: str, port: int) -> None:
    """Serve until interrupted.

    Raises:
        InputError: `host` can be reached from other machines.
    """
    settings = Settings(host=host, port=port)
    check_host(settings.host, published_on=settings.published_on)
    configure_logging(json=settings.log_json)
    app = LoopbackHostMiddleware(build_server_app(settings))
    uvicorn.run(app, host=settings.host, port=settings.port, server_header=False)


def configure_logging(*, json: bool) -> None:
    """Write structured log lines, as JSON for machines or as text for people."""
    last: list[structlog.typing.Processor]
    if json:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
    )
