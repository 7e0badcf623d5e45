"""The page's address: reads the question from the query string, asks the API, renders."""

from asyncio import gather
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from whatfits.web.answers import Plan, Problem
from whatfits.web.client import ApiClient, ApiProblemError
from whatfits.web.forms import PlanForm, build_plan_request, read_plan_form
from whatfits.web.view_models import Catalog
from whatfits.web.views import build_plan_page

__all__ = ["add_pages"]


def add_pages(app: FastAPI, client: ApiClient) -> None:
    """Add the page, its static files and Plotly to `app`."""
    app.include_router(_build_router(client))
    app.mount("/static/plotly", StaticFiles(directory=_plotly_directory()), name="plotly")
    app.mount("/static", StaticFiles(packages=[(__package__, "static")]), name="static")


def build_templates() -> Environment:
    """Jinja2 that escapes everything and fails on a name that is not there."""
    environment = Environment(
        loader=PackageLoader("whatfits.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_safe"] = _script_safe
    return environment


def _script_safe(json_text: str) -> Markup:
    """JSON for a script element: no character in it can end the element or start a comment."""
    escaped = json_text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)  # noqa: S704  # escaped above, and HTML escapes would break the JSON


def _build_router(client: ApiClient) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    template = build_templates().get_template("plan.html")

    @router.get("/", response_class=HTMLResponse)
    async def show_plan(request: Request) -> Response:
        form = read_plan_form(request.query_params)
        outcome, catalog = await gather(_ask(client, form), _read_catalog(client))
        status = outcome.status if isinstance(outcome, Problem) else HTTPStatus.OK
        page = build_plan_page(form, catalog, outcome)
        return HTMLResponse(template.render(page=page), status_code=status)

    return router


async def _ask(client: ApiClient, form: PlanForm) -> Plan | Problem:
    try:
        return await client.create_plan(build_plan_request(form))
    except ApiProblemError as error:
        return error.problem


async def _read_catalog(client: ApiClient) -> Catalog:
    models, gpus, optimizers = await gather(
        client.list_models(), client.list_gpus(), client.list_optimizers()
    )
    return Catalog(models=models, gpus=gpus, optimizers=optimizers)


def _plotly_directory() -> Path:
    """Where the plotly package keeps plotly.min.js; the package itself is not imported."""
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("The pages need the plotly package: pip install 'whatfits[service]'")
    return Path(found.origin).parent / "package_data"
