"""`whatfits trace`: make the memory profile of a model with the libraries of an environment."""

import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from whatfits.estimator.specs import ModelSpec
    from whatfits.profiler.trace.child_process import InterpreterError, TraceChild
    from whatfits.profiler.trace.options import AdapterOptions, Dims, StepOptions
    from whatfits.service.cli.trace_answer import TraceAnswer

_ACCEPTED = {
    "--precision": ("bf16", "fp32", "bf16_mixed", "fp16_mixed"),
    "--attention": ("sdpa", "eager"),
    "--checkpointing": ("none", "full", "ops", "every_2", "every_3", "every_4"),
    "--mask": ("none", "ones", "padded", "packed"),
    "--first-kernel": ("flash", "cudnn"),
    "--loss": ("standard", "chunked", "fused_linear"),
    "--adapter": ("none", "lora", "dora", "qlora"),
}
_DEFAULT_RANK = 16


def trace(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalog name, or the path of a Hugging Face config.json.")
    ],
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Interpreter whose torch and transformers are traced; default: this one."
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="bf16, fp32, bf16_mixed or fp16_mixed.")
    ] = "bf16",
    attention: Annotated[str, typer.Option(metavar="NAME", help="sdpa or eager.")] = "sdpa",
    checkpointing: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Activation checkpointing: none, full, ops, or every_2 to every_4 layers."
        ),
    ] = "none",
    micro_batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sequences per forward pass.")
    ] = 1,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens per sequence; default 2048 or the model's maximum."),
    ] = None,
    mask: Annotated[
        str, typer.Option(metavar="NAME", help="Attention mask of the batch: none, ones, padded or packed.")
    ] = "none",
    first_kernel: Annotated[
        str, typer.Option(metavar="NAME", help="What SDPA tries first: flash, or cudnn as on H100 and B200.")
    ] = "flash",
    loss: Annotated[
        str, typer.Option(metavar="NAME", help="standard, chunked or fused_linear.")
    ] = "standard",
    dropout: Annotated[float, typer.Option(min=0, max=0.99, help="Attention dropout.")] = 0.0,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="none, lora, dora or qlora; needs peft there.")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rank of the adapter.")] = None,
    lora_targets: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Modules that get one, such as q_proj,v_proj.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one trace may take.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Trace one training step of MODEL, compile it, verify it, and keep the profile for later answers.

    The profile is of the model's structure class: it answers every depth, width, batch and sequence. It is kept in
    $WHATFITS_PROFILES, or where the platform keeps a user's data. No GPU and no weights are needed.
    """
    from whatfits.profiler.trace.classes import KERNEL_ORDERS
    from whatfits.profiler.trace.options import StepOptions
    from whatfits.service.cli.output import print_json, warn

    names = {
        "--precision": precision, "--attention": attention, "--checkpointing": checkpointing,
        "--mask": mask, "--loss": loss, "--first-kernel": first_kernel,
    }  # fmt: skip
    for flag, value in names.items():
        _require_accepted(flag, value)
    spec = _find_model(model)
    options = StepOptions(
        architecture=spec.architecture,
        tie_embeddings=spec.tie_embeddings,
        precision=precision,
        attention=attention,
        kernels=KERNEL_ORDERS[first_kernel],
        checkpointing=checkpointing,
        mask=mask,
        loss=loss,
        dropout=dropout,
        adapter=_read_adapter(adapter, lora_rank, lora_targets),
    )
    dims: Dims = {
        **spec.dims,
        "b": micro_batch_size,
        "s": seq_len or min(2048, spec.max_position_embeddings or 2048),
        "r": lora_rank or _DEFAULT_RANK,
    }
    answer = _trace_in(python, timeout, spec, options, dims)
    if as_json:
        print_json(answer)
    else:
        from whatfits.service.cli.render_trace import render_trace

        render_trace(answer)
    if answer.fallback is not None:
        warn(f"not kept, as this is a direct trace of these sizes alone: {answer.fallback}")


def _require_accepted(flag: str, value: str) -> None:
    from whatfits.estimator.errors import InputError, near_matches

    accepted = _ACCEPTED[flag]
    if value not in accepted:
        raise InputError(flag, value, ", ".join(accepted), suggestions=near_matches(value, accepted))


def _find_model(name: str) -> "ModelSpec":
    from whatfits.estimator.catalog import model_argument, resolve_model

    spec, _ = resolve_model(model_argument(name))
    return spec


def _read_adapter(name: str | None, rank: int | None, targets: str | None) -> "AdapterOptions | None":
    """The adapter that the options describe; a rank or targets alone mean LoRA."""
    from whatfits.profiler.trace.options import AdapterOptions

    method = name or ("none" if rank is None and targets is None else "lora")
    _require_accepted("--adapter", method)
    if method == "none":
        return None
    adapter = AdapterOptions(dora=method == "dora", quantized=method == "qlora")
    if targets is None:
        return adapter
    chosen = tuple(dict.fromkeys(word.strip() for word in targets.split(",") if word.strip()))
    return AdapterOptions(targets=chosen, dora=adapter.dora, quantized=adapter.quantized)


def _trace_in(
    python: str | None, timeout: float, spec: "ModelSpec", options: "StepOptions", dims: "Dims"
) -> "TraceAnswer":
    """Trace with a child of the interpreter, which is gone when this returns or raises."""
    from whatfits.profiler.trace.child_process import InterpreterError, TraceChild, TraceError
    from whatfits.service.cli.failures import MissingExtraError, TraceRunError

    if python is None and any(find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtraError(
            "trace needs torch and transformers, which are not installed here: pip install 'whatfits[agent]', "
            "or name an environment that has them with --python"
        )
    try:
        with TraceChild(python or sys.executable, timeout_seconds=timeout) as child:
            return _answer(child, spec, options, dims)
    except InterpreterError as error:
        raise _blame(python, error) from error
    except TraceError as error:
        raise TraceRunError(f"{spec.name} cannot be traced like this: {error}") from error


def _blame(python: str | None, error: "InterpreterError") -> Exception:
    """Name the interpreter that was given, or the extra that this one lacks."""
    from whatfits.estimator.errors import InputError
    from whatfits.service.cli.failures import MissingExtraError

    if python is None:
        return MissingExtraError(f"trace needs what 'whatfits[agent]' installs: {error}")
    needed = "an interpreter, 3.11 or newer, with torch and transformers"
    accepted = f"{needed} and {error.package}" if error.package == "peft" else needed
    return InputError("--python", python, accepted, reason=f"{python}: {error}")


def _answer(child: "TraceChild", spec: "ModelSpec", options: "StepOptions", dims: "Dims") -> "TraceAnswer":
    from whatfits.estimator.profile.store import save_class, stack_folder, user_profiles
    from whatfits.profiler.trace.classes import class_at
    from whatfits.profiler.trace.produce import produce
    from whatfits.service.cli.trace_answer import describe_trace

    structure = class_at(options, dims)
    produced = produce(structure, child.stack, partial(child.trace, options=options), dims)
    folder = user_profiles() / stack_folder(child.stack)
    if produced.fallback is None:
        save_class(produced.programs, folder)
    return describe_trace(
        spec.name, produced, dims, versions=child.versions, python=child.python, folder=folder
    )
