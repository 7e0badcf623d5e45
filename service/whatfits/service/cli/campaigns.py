"""`whatfits campaigns`: a matrix of runs, measured as one. Like `measurements`, it uses the database itself."""

from typing import Annotated

import typer

from whatfits.service.cli.measurements import AsJson, DatabaseUrl, open_store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the campaign.")]


@app.command("submit", short_help="Measure a matrix of runs.")
def submit(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON that the REST API takes; - is standard input.")
    ],
    queue: Annotated[
        bool, typer.Option("--queue", help="Let runs wait whose device no agent has, instead of refusing.")
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put every combination into the queues; sent again, only what is missing. All are checked before any is stored."""
    from whatfits.service.cli.questions import read_spec

    asked = read_spec(file)
    database = open_store(database_url)

    from whatfits.service.cli.campaign_views import submit_campaign

    submit_campaign(database, asked, queue=queue, as_json=as_json)


@app.command("list", short_help="Campaigns, newest first.")
def list_(database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List campaigns with their measurements by status."""
    database = open_store(database_url)

    from whatfits.service.cli.campaign_views import list_all

    list_all(database, as_json=as_json)


@app.command("show", short_help="How far a campaign is.")
def show(name: Name, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Count a campaign's measurements by status; `measurements list --campaign NAME` lists them."""
    database = open_store(database_url)

    from whatfits.service.cli.campaign_views import show_one

    show_one(database, name, as_json=as_json)


@app.command("cancel", short_help="Cancel what is left of a campaign.")
def cancel(name: Name, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """End what waits at once; where a measurement runs, its agent ends it within two seconds."""
    database = open_store(database_url)

    from whatfits.service.cli.campaign_views import cancel_one

    cancel_one(database, name, as_json=as_json)
