"""Which published rows are compared with estimates, and why the others are not. Fixed before the first comparison.

The rule looks at what a source states, never at what an estimate says. A row is eligible when everything that changes
bytes is stated, and the product claims to model it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whatfits.estimator.catalog.published import (
    MEMORY_QUANTITIES,
    PublishedRow,
    Quantity,
    Tool,
    load_loops,
    load_published,
)

__all__ = ["Eligibility", "eligibility", "eligible_rows"]

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
METHODS = ("full", "pretrain", "lora", "dora", "qlora")
PRECISIONS = ("fp32", "bf16", "bf16_mixed", "bf16_master", "fp16_mixed")
OPTIMIZERS = ("adamw", "sgd", "sgdm")
CHECKPOINTING = ("none", "full")
ATTENTION = ("sdpa", "eager")
LITGPT_METHODS = ("lora", "adapter", "adapter_v2")
ANSWERED = MEMORY_QUANTITIES | {Quantity.STEP_TIME, Quantity.TOKENS_PER_SECOND_PER_GPU}
OTHER_AXES = ("tp", "pp", "cp", "ep", "vp", "etp", "fsdp", "zero_stage", "offload")

Needs = Literal["stack", "litgpt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligibility:
    """What becomes of one row."""

    reason: str | None = None
    """Why it is not compared; None when it is."""
    needs: Needs | None = None
    """What a comparison needs besides the product: an interpreter with the row's libraries, or a checkout of lit-gpt."""

    @property
    def eligible(self) -> bool:
        return self.reason is None


def eligibility(row: PublishedRow) -> Eligibility:
    """The first check that fails decides."""
    litgpt = row.loop == "litgpt_finetune"
    for check in _LITGPT_CHECKS if litgpt else _CHECKS:
        reason = check(row)
        if reason is not None:
            return Eligibility(reason=reason)
    return Eligibility(needs="litgpt" if litgpt else "stack")


def eligible_rows() -> dict[str, PublishedRow]:
    """All rows that are compared."""
    return {name: row for name, row in load_published().items() if eligibility(row).eligible}


def _figure(row: PublishedRow) -> str | None:
    answered = [r for r in row.measured if r.quantity in ANSWERED]
    if row.out_of_memory:
        return None
    if not answered:
        return "no figure an estimate answers"
    if all(r.tool is Tool.CALCULATED for r in answered):
        return "calculated, not measured"
    return None


def _architecture(row: PublishedRow) -> str | None:
    name = row.model.architecture
    if name is None:
        return "architecture not stated"
    return None if name in ARCHITECTURES else f"architecture not traced: {name}"


def _dims(row: PublishedRow) -> str | None:
    m = row.model
    known = m.catalog or (
        m.num_layers and m.hidden_size and m.num_attention_heads and m.intermediate_size and m.vocab_size
    )
    return None if known else "dims of the model not stated"


def _loop(row: PublishedRow) -> str | None:
    if row.loop is None:
        return "training loop not stated"
    return None if row.loop in load_loops() else f"framework not modelled: {row.loop}"


def _gpu(row: PublishedRow) -> str | None:
    return None if row.gpu_catalog else "GPU not stated exactly"


def _parallelism(row: PublishedRow) -> str | None:
    axes = [a for a in OTHER_AXES if row.parallelism.get(a) not in (None, 0, 1, "none")]
    if axes:
        return f"parallelism not modelled: {', '.join(axes)}"
    return None if row.num_gpus else "number of GPUs not stated"


def _batch(row: PublishedRow) -> str | None:
    if row.micro_batch_size is None:
        return "micro-batch not stated"
    return None if row.seq_len is not None else "sequence length not stated"


def _method(row: PublishedRow) -> str | None:
    return None if row.method in METHODS else f"method not modelled: {row.method}"


def _litgpt_method(row: PublishedRow) -> str | None:
    return None if row.method in LITGPT_METHODS else f"method not modelled: {row.method}"


def _precision(row: PublishedRow) -> str | None:
    if row.precision is None:
        return "precision not stated"
    return None if row.precision in PRECISIONS else f"precision not modelled: {row.precision}"


def _optimizer(row: PublishedRow) -> str | None:
    if row.optimizer is None:
        return "optimizer not stated"
    return (
        None
        if row.optimizer in OPTIMIZERS
        else f"optimizer not modelled or not stated exactly: {row.optimizer}"
    )


def _checkpointing(row: PublishedRow) -> str | None:
    if row.checkpointing is None:
        return "checkpointing not stated"
    return None if row.checkpointing in CHECKPOINTING else f"checkpointing not modelled: {row.checkpointing}"


def _attention(row: PublishedRow) -> str | None:
    return None if row.attention in ATTENTION else f"attention not modelled or not stated: {row.attention}"


def _stack(row: PublishedRow) -> str | None:
    if row.compile:
        return "torch.compile not modelled"
    return None if "transformers" in row.stack else "library versions not stated"


def _tool(row: PublishedRow) -> str | None:
    memory = [r for r in row.measured if r.quantity in MEMORY_QUANTITIES]
    if memory and all(r.tool is Tool.UNKNOWN for r in memory):
        return "measuring tool not stated"
    return None


_Check = Callable[[PublishedRow], str | None]
_CHECKS: tuple[_Check, ...] = (
    _figure,
    _architecture,
    _dims,
    _method,
    _parallelism,
    _gpu,
    _batch,
    _precision,
    _optimizer,
    _checkpointing,
    _attention,
    _loop,
    _stack,
    _tool,
)
# lit-gpt brings its own model code, so any of its architectures will do; its checkout states dims and attention.
_LITGPT_CHECKS: tuple[_Check, ...] = (
    _figure,
    _litgpt_method,
    _parallelism,
    _gpu,
    _batch,
    _precision,
    _optimizer,
    _checkpointing,
    _tool,
)
