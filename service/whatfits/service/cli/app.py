"""The `whatfits` program: its commands, and the one place where errors become a message and an exit status."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from whatfits.service.cli import (
    agent,
    campaigns,
    catalog,
    estimate,
    measure,
    measurements,
    migrate,
    plan,
    serve,
    trace,
)
from whatfits.service.cli.exit_codes import ExitCode

_EPILOG = (
    "Exit status: 0 fits; 1 does not fit (plan: nothing fits); 2 bad input; 3 internal or service error; "
    "4 uncertain, under --strict."
)

app = typer.Typer(
    name="whatfits",
    help="Which training runs fit on your GPUs, which of them is fastest, and how sure that answer is.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("plan", short_help="What fits on given GPUs, ranked, and why the rest does not.")(plan.plan)
app.command("estimate", short_help="One run: does it fit, and where does every byte go.")(estimate.estimate)
app.command("models", short_help="The models of the catalog.")(catalog.models)
app.command("gpus", short_help="The GPUs of the catalog.")(catalog.gpus)
app.command("optimizers", short_help="The optimizers whose memory is modelled.")(catalog.optimizers)
app.command("trace", short_help="Make a model's memory profile with your libraries.")(trace.trace)
app.command("measure", short_help="Real training steps on this machine, beside the estimate.")(
    measure.measure
)
app.command("serve", short_help="The web page and the REST API, on this machine.")(serve.serve)
app.command("agent", short_help="Measure on this machine what others ask for.")(agent.agent)
app.command("agents", short_help="The agents that are registered.")(agent.agents)
app.command("migrate", short_help="Make a database ready for servers and agents.")(migrate.migrate)
app.add_typer(campaigns.app, name="campaigns", short_help="Many runs, measured as one.")
app.add_typer(measurements.app, name="measurements", short_help="What was measured: export and import.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"whatfits {version('whatfits')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `whatfits` on `arguments` (default: those of the process) and exit."""
    try:
        app(args=arguments, prog_name="whatfits")
    except Exception as error:  # the last line of defence: a message, never a traceback
        if os.environ.get("WHATFITS_DEBUG"):
            raise
        sys.exit(_report(error))
    sys.exit(ExitCode.OK)


def _report(error: Exception) -> ExitCode:
    from whatfits.service.cli.failures import describe_failure

    failure = describe_failure(error)
    for line in failure.lines:
        typer.echo(f"error: {line}", err=True)
    return failure.exit_code
