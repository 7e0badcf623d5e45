"""`whatfits estimate`: one run, where every byte of it goes, and whether it fits."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from whatfits.service.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from whatfits.estimator.specs import Estimate

_REPLACED_BY_FILE = "either SPEC, which holds the whole run, or the options that describe one"


def estimate(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="JSON file with the run; - for standard input.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Catalog name, or the path of a Hugging Face config.json."),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="GPUS", help="Such as 8xa100-80gb, h100 or 2x8xh100 (nodes x GPUs).")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences per forward pass on each rank.")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(metavar="N", help="Tokens per sequence.")] = None,
    grad_accum: Annotated[
        int | None, typer.Option(metavar="N", help="Micro-batches per optimizer step.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Such as adamw or apollo_mini; see `whatfits optimizers`."),
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", help="Rank, for low-rank methods.")] = None,
    implementation: Annotated[
        str | None, typer.Option(metavar="NAME", help="for_loop, foreach or fused.")
    ] = None,
    layerwise: Annotated[
        bool | None, typer.Option("--layerwise", help="Update each parameter in the backward pass.")
    ] = None,
    clip: Annotated[bool | None, typer.Option("--clip", help="Clip gradients by their global norm.")] = None,
    checkpointing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Activation checkpointing: none, full, selective, or selective's ops or every_<k>.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="bf16, fp32, bf16_mixed, bf16_master or fp16_mixed."),
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="full, lora, qlora or dora.")] = None,
    lora_rank: Annotated[int | None, typer.Option(metavar="N", help="Rank of the adapter.")] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Layers that get an adapter, such as q_proj,v_proj or all-linear."
        ),
    ] = None,
    attention: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, sdpa, eager or flash_attention_2.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(metavar="P", help="Attention dropout.")] = None,
    packed: Annotated[
        bool | None, typer.Option("--packed", help="Several documents share a sequence.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="NAME", help="standard, chunked or fused_linear.")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose training loop, such as pytorch.")
    ] = None,
    shard: Annotated[
        int | None, typer.Option(metavar="N", help="Ranks that share one copy (FSDP full shard).")
    ] = None,
    tp: Annotated[int | None, typer.Option(metavar="N", help="Tensor-parallel degree.")] = None,
    allocator: Annotated[str | None, typer.Option(metavar="NAME", help="classic or expandable.")] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Name what is live at the peak, and draw memory over the step."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 if the answer is uncertain.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer of POST /api/v1/estimates.")
    ] = False,
) -> None:
    """Whether one run fits, where every byte goes, and how long a step takes.

    The run comes from SPEC (a JSON file, or - for standard input) or from the options; --model and --gpus are then
    required.
    """
    from whatfits.service.cli.questions import drop_unset

    is_policy = checkpointing not in (None, "none", "full", "selective")
    training = drop_unset(
        micro_batch_size=micro_batch,
        seq_len=seq_len,
        grad_accum_steps=grad_accum,
        optimizer=drop_unset(name=optimizer, rank=rank, implementation=implementation),
        layerwise_update=layerwise,
        gradient_clipping=clip,
        activation_checkpointing="selective" if is_policy else checkpointing,
        checkpointing_policy=checkpointing if is_policy else None,
        precision=precision,
        method=method,
        adapter=drop_unset(rank=lora_rank, targets=lora_targets and lora_targets.split(",")),
        attention=attention,
        dropout=dropout,
        packed_sequences=packed,
        loss=loss,
        framework=framework,
    )
    parallelism = drop_unset(dp_shard_degree=shard, zero_stage=None if shard is None else 3, tp_degree=tp)
    options = drop_unset(
        model=model, hardware=gpus, training=training, parallelism=parallelism, allocator=allocator
    )
    _show(_answer(spec, options, explain=explain), strict=strict, as_json=as_json)


# Any: unchecked options.
def _answer(source: str | None, options: dict[str, Any], *, explain: bool) -> "Estimate":
    """Estimate the run that a file, or else the options, describe."""
    from whatfits.estimator.catalog import model_argument, parse_gpus
    from whatfits.estimator.errors import InputError
    from whatfits.estimator.specs import RunSpec
    from whatfits.service.cli.output import note
    from whatfits.service.cli.questions import read_spec
    from whatfits.service.tracing import OnDemand

    ask = OnDemand(notify=note).estimate
    if source is not None:
        if options:
            raise InputError(
                "SPEC", source, _REPLACED_BY_FILE, reason=f"given together with {', '.join(options)}"
            )
        return ask(RunSpec.model_validate(read_spec(source)), explain=explain)
    for name, flag in (("model", "--model"), ("hardware", "--gpus")):
        if name not in options:
            raise InputError(flag, None, "SPEC.json, - or both --model and --gpus", reason="not given")
    hardware, assumptions = parse_gpus(options["hardware"])
    run = {**options, "model": model_argument(options["model"]), "hardware": hardware}
    answer = ask(RunSpec.model_validate(run), explain=explain)
    known = answer.provenance.assumptions
    added = tuple(sentence for sentence in assumptions if sentence not in known)
    provenance = answer.provenance.model_copy(update={"assumptions": (*added, *known)})
    return answer.model_copy(update={"provenance": provenance})


def _show(answer: "Estimate", *, strict: bool, as_json: bool) -> None:
    """Print the answer and exit with its verdict."""
    from whatfits.estimator.specs import Verdict
    from whatfits.service.cli.output import print_json, warn

    if as_json:
        print_json(answer)
    else:
        from whatfits.service.cli.render_estimate import render_estimate

        render_estimate(answer)
    if answer.fits is Verdict.NO:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
    if answer.fits is Verdict.UNCERTAIN:
        warn(f"uncertain: fits with probability {answer.fit_probability:.2f}")
        raise typer.Exit(ExitCode.UNCERTAIN if strict else ExitCode.OK)
