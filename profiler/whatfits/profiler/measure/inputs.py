"""Random inputs of one micro-batch, in the tensors that the traced loop has."""

from typing import Any

import torch
from torch import nn

from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.trace.configs import micro_batch_of
from whatfits.profiler.trace.masks import batch_inputs
from whatfits.profiler.trace.model import causal_model

__all__ = ["make_inputs"]

_SPECIAL = 10
"""Token ids below this mean something to some models, such as padding or the end of a sequence."""


def make_inputs(recipe: Recipe, model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Values are written in place, so that nothing is allocated beside the inputs themselves."""
    dims = recipe.dims
    if not recipe.options.config:
        given: dict[str, Any] = dict(batch_inputs(recipe.options.mask, dims["b"], dims["s"], device))
        for name in ("input_ids", "labels"):
            given[name].random_(dims["V"])
        return given
    inner = causal_model(model)
    given = micro_batch_of(inner, dims, device)
    for value in given.values():
        if isinstance(value, torch.Tensor):
            _fill(value, inner.config)
    return given


def _fill(value: torch.Tensor, config: Any) -> None:
    """Numbers, token ids, or, of one per sample, classes."""
    if value.is_floating_point():
        value.normal_()
    elif value.ndim == 1:
        value.random_(config.num_labels)
    else:
        vocab_size = config.get_text_config().vocab_size
        value.random_(min(_SPECIAL, vocab_size - 1), vocab_size)
