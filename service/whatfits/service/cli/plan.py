"""`whatfits plan`: everything that fits on given GPUs, ranked, and why the rest does not."""

from typing import Annotated

import typer

from whatfits.service.cli.exit_codes import ExitCode


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalog name, or the path of a Hugging Face config.json.")
    ],
    gpus: Annotated[
        str, typer.Option(metavar="GPUS", help="Such as 8xa100-80gb, h100 or 2x8xh100 (nodes x GPUs).")
    ],
    seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens per sequence; default 2048 or the model's maximum."),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Optimizer to try; may be repeated; default: all."),
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Rank for low-rank methods; may be repeated.")
    ] = None,
    global_batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per step over all GPUs; default: free.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Precision to try; may be repeated; default: bf16."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Training method to try; may be repeated; default: full."),
    ] = None,
    framework: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Training loop to try; may be repeated; default: pytorch."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Rank by throughput (default) or memory.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Candidates to show.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 if nothing fits for certain.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer of POST /api/v1/plans.")] = False,
) -> None:
    """What fits on these GPUs, ranked; for the rest the reason and the smallest change that fits."""
    from whatfits.estimator.catalog import model_argument
    from whatfits.estimator.specs import PlanRequest, Verdict
    from whatfits.service.cli.output import note, print_json, warn
    from whatfits.service.cli.questions import drop_unset
    from whatfits.service.tracing import OnDemand

    question = drop_unset(
        model=model_argument(model),
        hardware=gpus,
        seq_len=seq_len,
        global_batch_size=global_batch_size,
        optimizers=optimizer,
        ranks=rank,
        precisions=precision,
        methods=method,
        frameworks=framework,
        objective=objective,
        limit=limit,
    )
    answer = OnDemand(notify=note).plan(PlanRequest.model_validate(question))
    if as_json:
        print_json(answer)
    else:
        from whatfits.service.cli.render_plan import render_plan

        render_plan(answer)
    if not answer.candidates:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
    if all(candidate.estimate.fits is Verdict.UNCERTAIN for candidate in answer.candidates):
        warn("nothing fits for certain: every candidate's interval reaches the limit")
        raise typer.Exit(ExitCode.UNCERTAIN if strict else ExitCode.OK)
