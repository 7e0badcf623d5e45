"""Activation checkpointing: which layers, or which of their ops, are computed again in backward.

| name | what is kept | rule of |
|---|---|---|
| `none` | everything autograd saves | |
| `full` | each layer's input | transformers, `gradient_checkpointing_enable` |
| `every_<k>` | inputs of layers 0, k, 2 k, ...; everything in the layers between | transformers, `every_n_layers` |
| `ops` | each layer's input, the outputs of attention and of every second matrix product | torchtitan, `selective_ac_option="op"` |

All use torch's non-reentrant checkpoint. The last two are what a specification calls selective.
"""

import functools
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from whatfits.profiler.trace.options import checkpointing_period

__all__ = ["checkpoint_layers"]

_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
)
"""Source: torchtitan/models/llama3/infra/parallelize.py, `_op_sac_save_list`, at 018740b7aae7."""


def checkpoint_layers(model: nn.Module, name: str) -> None:
    """Switch checkpointing on as the model's own method does, then exempt the layers that keep their activations."""
    period = checkpointing_period(name)
    if name == "none":
        return
    _enable(
        model, {"use_reentrant": False, **({"context_fn": every_second_product} if name == "ops" else {})}
    )
    for number, layer in enumerate(_layers(model)):
        layer.gradient_checkpointing = number % period == 0  # type: ignore[assignment]  # a flag, not a module


def _enable(model: Any, arguments: dict[str, Any]) -> None:
    if hasattr(model, "peft_config"):  # frozen embeddings pass no gradient into the first layer otherwise
        model.enable_input_require_grads()
    # `gradient_checkpointing_enable` is its name in earlier releases.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(arguments)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if name.rpartition(".")[0].endswith("layers")]


def every_second_product() -> tuple[Any, Any]:
    """Contexts of one layer's forward and recompute that keep attention and every second matrix product.

    Only `mm` counts as a product, so those with a bias (`addmm`) are computed again.

    Source: torchtitan/distributed/activation_checkpoint.py, op-level selective checkpointing. Assumes: one device, so
    its entries for collectives and for float8 scales never occur.
    """
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(functools.partial(_keep, Counter()))
    return contexts


def _keep(
    num_products: Counter[bool], context: Any, func: Any, *_args: Any, **_kwargs: Any
) -> CheckpointPolicy:
    if func is torch.ops.aten.mm.default:
        num_products[context.is_recompute] += 1  # some torch releases ask again in recompute, others do not
        kept = num_products[context.is_recompute] % 2 == 1
    else:
        kept = func in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
