"""Trace complete training steps: every micro-batch, the optimizer, and the release of the gradients.

Nothing is composed here. The optimizer is a real `torch.optim.Optimizer` that steps under the recorder that traces the
model, so its states and temporaries are events like any other. What the estimator composes from a profile and an
optimizer program has to equal this.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from whatfits.profiler.trace.events import Alloc, Free, Token
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.training_step import MicroBatchTracer

__all__ = ["OptimizerFactory", "StepTrace", "trace_training_steps"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """One complete step of several.

    resting_bytes: live before the step beside weights and buffers, which is optimizer state; left_bytes: live after it;
    peak_bytes: the most that was live in it. Each storage is rounded up to 512 bytes.
    """

    resting_bytes: int
    peak_bytes: int
    left_bytes: int
    num_events: int


def trace_training_steps(
    dims: Dims,
    options: StepOptions,
    optimizer: OptimizerFactory,
    *,
    grad_accum_steps: int = 1,
    layerwise: bool = False,
    num_steps: int = 3,
) -> list[StepTrace]:
    """Trace steps from the first on, in which the optimizer creates its states.

    Args:
        dims: sizes of the model and the micro-batch.
        options: how to build the model.
        optimizer: makes the optimizer of some parameters.
        grad_accum_steps: micro-batches per step.
        layerwise: one optimizer per parameter, stepped as soon as the gradient is complete, which is then released.
        num_steps: how many steps to trace.
    """
    model = build_model(dims, options)
    if layerwise:
        single = {name: optimizer([p]) for name, p in model.named_parameters()}
        tracer = MicroBatchTracer(model, options, on_ready=lambda name, _parameter: _update(single[name]))
        last = None
    else:
        tracer = MicroBatchTracer(model, options)
        last = partial(_update, optimizer(model.parameters()))
    sizes: dict[int, int] = {}
    steps = []
    for _ in range(num_steps):
        tokens: list[Token] = []
        for number in range(grad_accum_steps):
            before_end = last if number == grad_accum_steps - 1 else None
            parts = tracer.micro_batch(dims["b"], dims["s"], before_end=before_end)
            tokens += [token for part in parts.values() for token in part]
        steps.append(_walk(tokens, sizes))
    return steps


def _update(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _walk(tokens: list[Token], sizes: dict[int, int]) -> StepTrace:
    """Follow the live bytes through one step; `sizes` holds the blocks that are live, before and after."""
    resting = live = peak = sum(sizes.values())
    for token in tokens:
        if isinstance(token, Alloc):
            sizes[token.block] = -(-token.nbytes // 512) * 512
            live += sizes[token.block]
            peak = max(peak, live)
        elif isinstance(token, Free):
            live -= sizes.pop(token.block)
    return StepTrace(resting_bytes=resting, peak_bytes=peak, left_bytes=live, num_events=len(tokens))
