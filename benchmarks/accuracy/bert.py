"""BERT-large under transformers' Trainer in January 2022: today's model code, traced with what its stack did otherwise.

The page prints the device's total after training, and the total of a process that holds one tiny tensor: the context,
which is thus an input here and no estimate. The estimate is this context and the reserved bytes of the replay.

The page names no versions. It shows `nvidia-smi` of 11 January 2022, when torch 1.10.1 and transformers 4.15 were the last
releases: assumed. Their code was not installed to be traced; rules are from the threads named, and from copies of that code
in other projects.

| rule | what it did | source |
|---|---|---|
| softmax_input | a softmax kept its input for backward, besides its output | pytorch/pytorch#64000 of August 2021; that 1.10 lacks its fix, #66018 of 1 October 2021, is inferred from the dates |
| fp32_mask | without a mask BertModel made one of zeros in the dtype of the weights, fp32; added to fp16 scores it makes them fp32 | transformers 4.15, modeling_utils.py `get_extended_attention_mask`; modeling_bert.py `BertSelfAttention` |
| (always) | `Module.zero_grad` filled gradients with zeros, so they stay allocated | torch 1.10, nn/modules/module.py: `set_to_none=False`; 4.15, trainer.py `train` |
| (always) | optimizers step parameter by parameter, matrices before vectors | `trainer_optimizers` |
| (always) | gradients clipped to norm 1 | transformers 4.15, training_args.py, `max_grad_norm` |

The first is post hoc: it was found from the residuals of a first trial and only later in the threads. The optimizers' own
steps are too: a first run here had torch's (post_hoc.json). `fp32_mask` was written down before any run here, with the trial's
residuals known. Not modelled: `linear` on three dims as a product and an addition, assumed to keep the same bytes, and
reentrant checkpointing, 4.15's only kind; these traces have the non-reentrant one. Not explained: fp16 without
checkpointing (hf-bertlarge-3) holds some 16 MiB a layer more; transformers' Adafactor with checkpointing (hf-bertlarge-6)
about one tensor of the largest parameter's size less.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
from transformers.models.bert import modeling_bert

from benchmarks.accuracy.evaluate import compose
from benchmarks.accuracy.trainer_optimizers import OPTIMIZERS
from whatfits.estimator.catalog import ResolvedRun, find_gpu
from whatfits.estimator.catalog.config_models import model_from_facts
from whatfits.estimator.catalog.published import PublishedRow
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.memory.device import gpu_symbols
from whatfits.estimator.memory.replay import replay
from whatfits.estimator.profile import EventProgram, canonical_config
from whatfits.estimator.specs import RunSpec
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.direct import program_of_trace
from whatfits.profiler.trace.memory_steps import Gpu, kernels_of
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch

__all__ = ["PRINTED_CONTEXT", "STACK", "Rule", "TrainerEstimate", "estimate_trainer_row", "of_trainer"]

_softmax, _softmax_backward = (
    getattr(torch.ops.aten, name) for name in ("_softmax", "_softmax_backward_data")
)
PRINTED_CONTEXT = 1343 << 20
"""The page's total of the device with one tiny tensor on it. Source: the rows' source, "GPU memory occupied: 1343 MB"."""


class Rule(StrEnum):
    """What the stack of 2022 did otherwise and a trace has to be told; see the module."""

    SOFTMAX_INPUT = "softmax_input"
    FP32_MASK = "fp32_mask"


STACK = frozenset(Rule)
"""Every rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEstimate:
    """One row's estimate in bytes."""

    allocated: int
    reserved: int

    @property
    def device(self) -> int:
        """What the page prints."""
        return PRINTED_CONTEXT + self.reserved


def of_trainer(row: PublishedRow) -> bool:
    """Whether a row is one of the page's."""
    return row.loop == "hf_trainer" and row.model.architecture == "BertForSequenceClassification"


def estimate_trainer_row(row: PublishedRow, rules: frozenset[Rule] = STACK) -> TrainerEstimate:
    """Trace the row's micro-batch, put its steps together as the product does and replay them."""
    config = _config_of(row)
    resolved = _resolve(row, config)
    assert row.optimizer is not None, "the page names its optimizers"
    _, timeline, _ = compose(resolved, _trace(resolved, config, rules), OPTIMIZERS[row.optimizer])
    found = replay(timeline.events)
    return TrainerEstimate(allocated=found.peak_allocated_bytes, reserved=found.peak_reserved_bytes)


def _config_of(row: PublishedRow) -> str:
    """The config of bert-large-uncased, whose dropouts are transformers' defaults."""
    m = row.model
    return canonical_config(
        {
            "model_type": "bert",
            "architectures": [m.architecture],
            "num_hidden_layers": m.num_layers,
            "hidden_size": m.hidden_size,
            "intermediate_size": m.intermediate_size,
            "num_attention_heads": m.num_attention_heads,
            "vocab_size": m.vocab_size,
        }
    )


def _resolve(row: PublishedRow, config: str) -> ResolvedRun:
    facts = json.loads(json.dumps(describe(config).to_json()))
    model = model_from_facts(config, facts, name=row.model.name, source=row.source)
    assert row.gpu_catalog is not None, "the page names its GPU"
    run = RunSpec.model_validate(
        {
            "model": json.loads(config),
            "training": {
                "precision": row.precision,
                "micro_batch_size": row.micro_batch_size,
                "seq_len": row.seq_len,
                "grad_accum_steps": row.grad_accum_steps,
                "gradient_clipping": True,  # TrainingArguments.max_grad_norm is 1.0
                "activation_checkpointing": row.checkpointing,
                "attention": row.attention,
                "loop": {"set_grads_to_none": False},
            },
            "hardware": {"gpu": row.gpu_catalog, "num_gpus": row.num_gpus},
        }
    )
    return ResolvedRun(run=run, model=model, gpu=find_gpu(row.gpu_catalog), assumptions=())


def _trace(resolved: ResolvedRun, config: str, rules: frozenset[Rule]) -> EventProgram:
    training, model, gpu = resolved.run.training, resolved.model, resolved.gpu
    options = StepOptions(
        architecture=model.architecture,
        config=config,
        precision=str(training.precision),
        attention="eager",
        checkpointing=str(training.activation_checkpointing),
    )
    dims = {"L": model.num_layers, "b": training.micro_batch_size, "s": training.seq_len}
    traced_gpu = Gpu(**gpu_symbols(gpu), capability=int(gpu.compute_capability.partition(".")[0]))
    with kernels_of(traced_gpu), _attention_of(rules):
        trace = trace_micro_batch(dims, options)
    return program_of_trace(trace, profile_key(model, training, gpu), model.num_layers, running_stack())


@contextmanager
def _attention_of(rules: frozenset[Rule]) -> Iterator[None]:
    """BERT's eager attention as the rules have it."""
    original = modeling_bert.eager_attention_forward
    modeling_bert.eager_attention_forward = _eager_attention(rules)
    try:
        yield
    finally:
        modeling_bert.eager_attention_forward = original


def _eager_attention(rules: frozenset[Rule]) -> Any:
    """Stands in for `modeling_bert.eager_attention_forward`.

    Source: transformers 4.15, modeling_bert.py `BertSelfAttention.forward`.
    """

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _mask: torch.Tensor | None,
        dropout: float = 0.0,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / math.sqrt(query.shape[-1])
        if Rule.FP32_MASK in rules:
            batch, keys = key.shape[0], key.shape[2]
            scores = scores + torch.empty(batch, 1, 1, keys, device=key.device)
        softmax: Any = (
            _SoftmaxKeepingInput.apply if Rule.SOFTMAX_INPUT in rules else partial(F.softmax, dim=-1)
        )
        probabilities = softmax(scores)
        probabilities = F.dropout(probabilities, p=dropout, training=module.training)
        context = torch.matmul(probabilities, value)
        return context.permute(0, 2, 1, 3).contiguous(), probabilities

    return attention


class _SoftmaxKeepingInput(torch.autograd.Function):
    """Softmax over the last dim, in fp32 as under autocast, that keeps input and output.

    Source: torch 1.10, tools/autograd/derivatives.yaml, `_softmax`: `_softmax_backward_data(grad, result, dim, self)`,
    quoted in pytorch/pytorch#64000.
    """

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _softmax(scores, -1, scores.dtype == torch.float16)
        ctx.save_for_backward(scores, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        scores, output = ctx.saved_tensors
        return _softmax_backward(gradients[0], output, -1, scores.dtype)
