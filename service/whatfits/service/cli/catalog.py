"""`whatfits models`, `gpus` and `optimizers`: what can be asked about."""

from typing import Annotated

import typer

Search = Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Show only what contains this text.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print every fact, with sources, as JSON.")]

Details = Annotated[
    bool, typer.Option("--details", help="Print paper, constraints and published results of each.")
]


def models(text: Search = None, as_json: AsJson = False) -> None:
    """List the models of the catalog."""
    from whatfits.estimator.catalog import load_models
    from whatfits.service.api.schemas import ModelList
    from whatfits.service.cli.output import print_json

    rows = tuple(model for model in load_models().values() if _matches(text, model.name, *model.aliases))
    if as_json:
        print_json(ModelList(items=rows))
    else:
        from whatfits.service.cli.render_catalog import render_models

        render_models(rows)


def gpus(text: Search = None, as_json: AsJson = False) -> None:
    """List the GPUs of the catalog, with the memory their driver reports."""
    from whatfits.estimator.catalog import load_gpus
    from whatfits.service.api.schemas import GpuList
    from whatfits.service.cli.output import print_json

    rows = tuple(gpu for gpu in load_gpus().values() if _matches(text, gpu.id, gpu.name, *gpu.aliases))
    if as_json:
        print_json(GpuList(items=rows))
    else:
        from whatfits.service.cli.render_catalog import render_gpus

        render_gpus(rows)


def optimizers(text: Search = None, as_json: AsJson = False, details: Details = False) -> None:
    """List the optimizers whose memory is modelled, with what they cost on LLaMA-7B."""
    from whatfits.estimator.memory.optimizers import OPTIMIZERS
    from whatfits.service.api.schemas import OptimizerList, describe_optimizer
    from whatfits.service.cli.output import print_json

    found = ((str(name), facts) for name, facts in OPTIMIZERS.items() if _matches(text, name, facts.title))
    rows = tuple(describe_optimizer(name, facts) for name, facts in found)
    if as_json:
        print_json(OptimizerList(items=rows))
    else:
        from whatfits.service.cli.render_catalog import render_optimizer_details, render_optimizers

        (render_optimizer_details if details else render_optimizers)(rows)


def _matches(text: str | None, *names: str) -> bool:
    return text is None or any(text.casefold() in name.casefold() for name in names)
