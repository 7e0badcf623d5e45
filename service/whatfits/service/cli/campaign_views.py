"""Campaigns of a database, for a person or as the REST API's JSON: submitted, listed, counted, cancelled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine as Database

from whatfits.estimator.specs import MeasurementStatus
from whatfits.service.api.measurement_schemas import CampaignList, describe_campaign
from whatfits.service.cli.output import build_table, print_json, print_rendered
from whatfits.service.domain.campaigns import (
    CampaignRequest,
    CampaignState,
    cancel_left,
    list_campaigns,
    read_campaign,
)
from whatfits.service.engine import Engine
from whatfits.service.storage.campaigns import CampaignStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.measurements import MeasurementStore


# Any: unchecked JSON.
def submit_campaign(database: Database, asked: dict[str, Any], *, queue: bool, as_json: bool) -> None:
    """Submit one, and print how far it is."""
    from whatfits.service.backend import compose_campaigns
    from whatfits.service.domain.estimator_planner import EstimatorPlanner
    from whatfits.service.settings import Settings

    request = CampaignRequest.model_validate(asked)
    with _queues(database) as jobs:
        campaigns = compose_campaigns(database, jobs, EstimatorPlanner(), Settings())
        _print_one(campaigns.submit(request, queue_when_unavailable=queue), as_json=as_json)


def list_all(database: Database, *, as_json: bool) -> None:
    """Print every one."""
    states = list_campaigns(CampaignStore(database))
    if as_json:
        print_json(CampaignList(items=tuple(describe_campaign(state) for state in states)))
    elif states:
        _print_table(states)
    else:
        print_rendered("there is no campaign")


def show_one(database: Database, name: str, *, as_json: bool) -> None:
    """Print one."""
    _print_one(read_campaign(name, CampaignStore(database)), as_json=as_json)


def cancel_one(database: Database, name: str, *, as_json: bool) -> None:
    """Cancel what is left of one, and print how far it was."""
    store, claims = MeasurementStore(database), ClaimStore(database)
    with _queues(database) as jobs:
        state = cancel_left(name, CampaignStore(database), store=store, claims=claims, jobs=jobs)
    _print_one(state, as_json=as_json)


@contextmanager
def _queues(database: Database) -> Iterator[Engine]:
    jobs = Engine(database.url.render_as_string(hide_password=False))
    try:
        yield jobs
    finally:
        jobs.close()


def _print_one(state: CampaignState, *, as_json: bool) -> None:
    if as_json:
        print_json(describe_campaign(state))
    else:
        _print_table([state])


def _print_table(states: Sequence[CampaignState]) -> None:
    statuses = list(MeasurementStatus)
    counted = ("total", *(str(status) for status in statuses), "missing")
    table = build_table("campaign", *counted, "since", right=counted)
    for state in states:
        counts = (state.total, *(state.counts[status] for status in statuses), state.missing)
        since = state.created_at.strftime("%Y-%m-%d %H:%M:%S UTC")
        table.add_row(state.name, *map(str, counts), since)
    print_rendered(table)
