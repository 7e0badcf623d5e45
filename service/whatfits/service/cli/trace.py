"""`whatfits trace`: make the memory profile of a model with the libraries of an environment."""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from whatfits.profiler.trace.child_process import InterpreterError
    from whatfits.profiler.trace.options import AdapterOptions
    from whatfits.service.cli.trace_answer import TraceAnswer
    from whatfits.service.cli.trace_any import Asked

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
        str,
        typer.Argument(
            metavar="MODEL",
            help="Catalog name, path of a Hugging Face config.json, or python:MODULE:FACTORY.",
        ),
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
    memory_gib: Annotated[
        float, typer.Option(min=0.5, metavar="GIB", help="What the process that traces may allocate.")
    ] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Trace one training step of MODEL, compile it, verify it, and keep the profile for later answers.

    The profile is of the model's structure class: of LLaMA and Qwen2 it answers every depth, width, batch and
    sequence, of others every batch and sequence. It is kept in $WHATFITS_PROFILES, or where the platform keeps a user's
    data. No GPU and no weights are needed.

    python:MODULE:FACTORY is a module of your own: FACTORY() returns it; it, or MODULE, has a function
    sample_inputs(batch, seq_len, device) that returns what it is called with; and it returns the loss, or an object
    whose .loss that is. It is traced and verified, and not kept.
    """
    from whatfits.estimator.units import GIB
    from whatfits.profiler.trace.classes import KERNEL_ORDERS
    from whatfits.profiler.trace.options import StepOptions
    from whatfits.service.cli.output import print_json, warn
    from whatfits.service.cli.questions import require_choice
    from whatfits.service.cli.trace_any import Asked
    from whatfits.service.trace_limits import TraceLimits

    names = {
        "--precision": precision, "--attention": attention, "--checkpointing": checkpointing,
        "--mask": mask, "--loss": loss, "--first-kernel": first_kernel,
    }  # fmt: skip
    for flag, value in names.items():
        require_choice(flag, value, _ACCEPTED[flag])
    options = StepOptions(
        precision=precision,
        attention=attention,
        kernels=KERNEL_ORDERS[first_kernel],
        checkpointing=checkpointing,
        mask=mask,
        loss=loss,
        dropout=dropout,
        adapter=_read_adapter(adapter, lora_rank, lora_targets),
    )
    limits = TraceLimits(timeout_seconds=timeout, memory_bytes=round(memory_gib * GIB))
    asked = Asked(model, options, micro_batch_size, seq_len, lora_rank or _DEFAULT_RANK, limits)
    answer = _trace_in(python, asked)
    if as_json:
        print_json(answer)
    else:
        from whatfits.service.cli.render_trace import render_trace

        render_trace(answer)
    if answer.fallback is not None:
        kept = "not kept" if answer.saved_to is None else "kept for this question alone"
        warn(f"{kept}, as this is a direct trace of these sizes: {answer.fallback}")


def _read_adapter(name: str | None, rank: int | None, targets: str | None) -> "AdapterOptions | None":
    """The adapter that the options describe; a rank or targets alone mean LoRA."""
    from whatfits.profiler.trace.options import AdapterOptions
    from whatfits.service.cli.questions import require_choice

    method = name or ("none" if rank is None and targets is None else "lora")
    require_choice("--adapter", method, _ACCEPTED["--adapter"])
    if method == "none":
        return None
    adapter = AdapterOptions(dora=method == "dora", quantized=method == "qlora")
    if targets is None:
        return adapter
    chosen = tuple(dict.fromkeys(word.strip() for word in targets.split(",") if word.strip()))
    return AdapterOptions(targets=chosen, dora=adapter.dora, quantized=adapter.quantized)


def _trace_in(python: str | None, asked: "Asked") -> "TraceAnswer":
    """Trace with a child of the interpreter, which is gone when this returns or raises."""
    from whatfits.profiler.trace.child_process import InterpreterError, TraceChild, TraceError
    from whatfits.service.cli.failures import MissingExtraError, TraceRunError
    from whatfits.service.cli.trace_any import answer_with

    if python is None and any(find_spec(name) is None for name in ("torch", "transformers")):
        raise MissingExtraError(
            "trace needs torch and transformers, which are not installed here: pip install 'whatfits[agent]', "
            "or name an environment that has them with --python"
        )
    asked.check()
    try:
        with TraceChild(
            python or sys.executable,
            timeout_seconds=asked.limits.timeout_seconds,
            memory_bytes=asked.limits.memory_bytes,
        ) as child:
            return answer_with(child, asked)
    except InterpreterError as error:
        raise _blame(python, error) from error
    except TraceError as error:
        raise TraceRunError(f"{asked.name} cannot be traced like this: {error}") from error


def _blame(python: str | None, error: "InterpreterError") -> Exception:
    """Name the interpreter that was given, or the extra that this one lacks."""
    from whatfits.estimator.errors import InputError
    from whatfits.service.cli.failures import MissingExtraError

    if python is None:
        return MissingExtraError(f"trace needs what 'whatfits[agent]' installs: {error}")
    needed = "an interpreter, 3.11 or newer, with torch and transformers"
    accepted = f"{needed} and {error.package}" if error.package == "peft" else needed
    return InputError("--python", python, accepted, reason=f"{python}: {error}")
