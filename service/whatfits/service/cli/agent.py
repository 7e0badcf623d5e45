"""`whatfits agent`: a process that measures on this machine; `whatfits agents`: all that are registered."""

from importlib.util import find_spec
from typing import Annotated

import typer

from whatfits.service.cli.measurements import DatabaseUrl

AsJson = Annotated[bool, typer.Option("--json", help="Print the agents as JSON.")]


def agent(
    slot: Annotated[
        str | None,
        typer.Option(
            metavar="SLOT", help="The devices it measures on: gpu0, gpu0-7 (all of them together) or cpu."
        ),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="An agent for each GPU of this machine, or one for the CPU.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Take measurements from the queue of a slot's kind of device and carry them out, one at a time, until told to end.

    The database is that of a server: `whatfits serve` with the same URL. Exit status 3: the devices are used by another
    agent or program, or are not there.
    """
    from whatfits.estimator.errors import InputError
    from whatfits.service.cli.failures import ServiceStartError

    _require_extras()
    if auto == (slot is not None):
        raise InputError("--slot", slot, "either --slot or --auto")

    from whatfits.service.agent import leave_process, run_agent
    from whatfits.service.local_agent import run_agents, slots_here
    from whatfits.service.logs import configure_logging
    from whatfits.service.settings import Settings
    from whatfits.service.slots import SlotTakenError, SlotUnavailableError

    settings = Settings() if database_url is None else Settings(database_url=database_url)
    configure_logging(json=settings.log_json)
    if auto:
        leave_process(run_agents(settings, slots_here()))
    try:
        run_agent(settings, str(slot))
    except (SlotTakenError, SlotUnavailableError) as error:
        raise ServiceStartError(str(error)) from error
    leave_process(0)


def agents(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List the agents that were heard in the last hour, with their devices and queues."""
    from whatfits.service.api.measurement_schemas import AgentList, describe_agent
    from whatfits.service.cli.measurements import open_store
    from whatfits.service.cli.output import print_json
    from whatfits.service.settings import Settings
    from whatfits.service.storage.agents import AgentStore
    from whatfits.service.storage.coordination import database_now

    database = open_store(database_url)
    states = AgentStore(database, stale_after=Settings().stale_after).list(database_now(database))
    listed = AgentList(items=tuple(describe_agent(state) for state in states))
    if as_json:
        print_json(listed)
    else:
        from whatfits.service.cli.render_agents import render_agents

        render_agents(listed.items)


def _require_extras() -> None:
    from whatfits.service.cli.failures import MissingExtraError
    from whatfits.service.measure_child import missing_extra

    if any(find_spec(name) is None for name in ("dbos", "sqlalchemy", "pydantic_settings", "structlog")):
        raise MissingExtraError(
            "agent needs the service's parts, not installed: pip install 'whatfits[agent]'"
        )
    missing = missing_extra()
    if missing is not None:
        raise MissingExtraError(missing)
