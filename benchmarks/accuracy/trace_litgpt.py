"""Trace one fine-tuning iteration of lit-gpt's own model; runs in an environment with lightning, as its code imports it.

    python trace_litgpt.py CHECKOUT < question.json > answer.json

A question: {"name": "Llama-2-7b-hf", "method": "lora", "batch": 1, "seq_len": 1304}. The answer: the trace, as the
product's tracer makes it, and the bytes of tensors that validation left behind.
"""

# mypy: disable-error-code="import-not-found, no-untyped-call"

import importlib
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.simplefilter("ignore")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [sys.argv[1], str(ROOT / "profiler"), str(ROOT / "estimator")]

import torch  # noqa: E402 (the path is set above)
from torch import nn  # noqa: E402 (the same)

from whatfits.profiler.trace.events import Trace  # noqa: E402 (the same)
from whatfits.profiler.trace.model import traced_parameters  # noqa: E402 (the same)
from whatfits.profiler.trace.options import StepOptions  # noqa: E402 (the same)
from whatfits.profiler.trace.protocol import trace_to_json  # noqa: E402 (the same)
from whatfits.profiler.trace.training_step import MicroBatchTracer, assign_categories  # noqa: E402 (the same)

# finetune/lora.py: the constants at its top.
LORA = {"r": 8, "alpha": 16, "dropout": 0.05, "to_query": True, "to_key": False, "to_value": True,
        "to_projection": False, "to_mlp": False, "to_head": False}  # fmt: skip
FREEZE = {
    "lora": "mark_only_lora_as_trainable",
    "adapter": "mark_only_adapter_as_trainable",
    "adapter_v2": "mark_only_adapter_v2_as_trainable",
}
HEAD_CHUNK = 128


class FineTuning(nn.Module):
    """The loop's forward pass and loss around the model, in the shape the product's tracer calls.

    Source: finetune/lora.py and finetune/adapter.py, train: the head in chunks, the last one shortened by a token,
    the loss over chunks; `logits` lives until the next iteration assigns it. Lightning's Fabric converts what a bf16
    model returns to fp32 (HalfPrecision.convert_output).
    """

    def __init__(self, gpt: nn.Module, loss: Any) -> None:
        super().__init__()
        self.gpt = gpt
        self.loss_function = loss

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.gpt(input_ids, lm_head_chunk_size=HEAD_CHUNK)
        logits = [chunk.to(torch.float32) for chunk in logits]
        logits[-1] = logits[-1][..., :-1, :]
        loss = self.loss_function(logits, labels[..., 1:])
        return SimpleNamespace(loss=loss, logits=logits)


def build(question: dict[str, Any]) -> tuple[nn.Module, int]:
    """The model as `main` has it when training begins, and the bytes that its sanity check of validation left."""
    module = importlib.import_module(f"lit_gpt.{question['method']}")
    extra = LORA if question["method"] == "lora" else {}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            gpt: Any = module.GPT(module.Config.from_name(question["name"], **extra))
    finally:
        torch.set_default_dtype(torch.float32)
    getattr(module, FREEZE[question["method"]])(gpt)
    gpt.max_seq_length = question["seq_len"]
    kept = 0
    if question["method"] != "lora":
        with torch.no_grad():
            gpt(torch.empty(1, 8, dtype=torch.int64, device="meta"))
        kept = sum(x.untyped_storage().nbytes() for x in _cached(gpt))
    return gpt.train(), kept


def _cached(gpt: Any) -> list[torch.Tensor]:  # Any: lit-gpt's GPT
    """Keys and values of the prompts, which validation computes without a graph and training uses again."""
    blocks = [block for block in gpt.transformer.h if hasattr(block.attn, "adapter_kv_cache")]
    pairs = [block.attn.adapter_kv_cache for block in blocks]
    tensors = {tensor.untyped_storage()._cdata: tensor for pair in pairs for tensor in pair}  # noqa: SLF001 (identity)
    return list(tensors.values())


def main() -> None:
    question = json.load(sys.stdin)
    gpt, kept = build(question)
    utilities = importlib.import_module("lit_gpt.utils")
    model = FineTuning(gpt, utilities.chunked_cross_entropy)
    tracer = MicroBatchTracer(model, StepOptions(keep_outputs=True))
    for tensor in _cached(gpt):
        tracer.recorder.ignore(tensor)
    parts = tracer.micro_batch(question["batch"], question["seq_len"])
    assign_categories(parts, "lm_head")
    trace = Trace(
        parts=parts,
        parameters=traced_parameters(model),
        buffers=tuple((name, b.untyped_storage().nbytes()) for name, b in model.named_buffers()),
    )
    json.dump({"trace": trace_to_json(trace), "kept_bytes": kept}, sys.stdout)


if __name__ == "__main__":
    main()
