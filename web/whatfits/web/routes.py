"""The pages' addresses: each reads its question from the address, asks the API, renders."""

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
from whatfits.web.measurement_answers import MeasurementList
from whatfits.web.measurement_models import FilterForm
from whatfits.web.measurement_views import build_measurement_page, build_measurements_page, filters_of
from whatfits.web.view_models import Catalog
from whatfits.web.views import build_plan_page

__all__ = ["add_pages"]


def add_pages(app: FastAPI, client: ApiClient) -> None:
    """Add the pages, their static files and Plotly to `app`."""
    templates = build_templates()
    app.include_router(_build_plan_router(client, templates))
    app.include_router(_build_measurement_router(client, templates))
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


def _build_plan_router(client: ApiClient, templates: Environment) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    template = templates.get_template("plan.html")

    @router.get("/", response_class=HTMLResponse)
    async def show_plan(request: Request) -> Response:
        form = read_plan_form(request.query_params)
        outcome, catalog = await gather(_ask(client, form), _read_catalog(client))
        status = outcome.status if isinstance(outcome, Problem) else HTTPStatus.OK
        page = build_plan_page(form, catalog, outcome)
        return HTMLResponse(template.render(page=page), status_code=status)

    return router


def _build_measurement_router(client: ApiClient, templates: Environment) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/measurements", response_class=HTMLResponse)
    async def show_measurements(request: Request) -> Response:
        query = request.query_params
        form = FilterForm(**{name: query.get(name, "").strip() for name in FilterForm.__dataclass_fields__})
        listing, agents = await gather(
            _list_measurements(client, form, query.get("cursor", "")), client.list_agents()
        )
        page = build_measurements_page(form, listing, agents)
        status = listing.status if isinstance(listing, Problem) else HTTPStatus.OK
        return HTMLResponse(templates.get_template("measurements.html").render(page=page), status_code=status)

    @router.get("/measurements/{measurement_id}", response_class=HTMLResponse)
    async def show_measurement(measurement_id: str) -> Response:
        try:
            measurement = await client.read_measurement(measurement_id)
        except ApiProblemError as error:
            text = templates.get_template("problem.html").render(problem=error.problem)
            return HTMLResponse(text, status_code=error.problem.status)
        page = build_measurement_page(measurement)
        return HTMLResponse(templates.get_template("measurement.html").render(page=page))

    return router


async def _list_measurements(client: ApiClient, form: FilterForm, cursor: str) -> MeasurementList | Problem:
    try:
        return await client.list_measurements(filters_of(form) | ({"cursor": cursor} if cursor else {}))
    except ApiProblemError as error:
        return error.problem


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
