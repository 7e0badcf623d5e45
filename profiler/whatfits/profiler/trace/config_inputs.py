"""What a micro-batch of a config's model holds: tokens, images or features."""

import inspect
from collections.abc import Container
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto

from whatfits.profiler.trace.options import Dims

__all__ = ["inputs_of", "micro_batch_of"]

_IMAGE_SIZE = 224
_CHANNELS = 3
_OF_FEATURES = ("max_source_positions", "num_mel_bins")
"""Numbers of a config that say how much audio its encoder takes."""


def inputs_of(model: Any) -> str:
    """What a micro-batch of a model holds, as `ConfigFacts.inputs` names it."""
    taken = inspect.signature(model.forward).parameters
    if _hears(model.config, taken):
        return "features"
    if "input_ids" not in taken:
        return "images"
    if "pixel_values" in taken and "image_grid_thw" not in taken:
        return "images_and_tokens"
    return "tokens_and_targets" if model.config.is_encoder_decoder else "tokens"


def micro_batch_of(model: nn.Module, dims: Dims, device: torch.device) -> dict[str, Any]:
    """The inputs of one micro-batch: token ids and labels, images and classes, features and transcripts, as the model takes.

    Of b sequences of s tokens; a decoder's labels have t tokens; one image per sequence; one class of a sequence that
    is classified. Assumes: text alone where images come cut into patches of a grid whose numbers the code reads
    (Qwen2-VL), and where audio is optional.
    """
    config: Any = model.config
    taken = inspect.signature(model.forward).parameters
    dtype = next(model.parameters()).dtype
    batch, seq_len = dims["b"], dims.get("s", 1)

    def ids(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int64, device=device)

    def numbers(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    if _hears(config, taken):
        frames = 2 * config.max_source_positions
        return {"input_features": numbers(batch, config.num_mel_bins, frames), "labels": ids(batch, seq_len)}
    if "input_ids" not in taken:
        return {"pixel_values": numbers(batch, *_image_size(config)), "labels": ids(batch)}
    if "return_loss" in taken:
        images = numbers(batch, *_image_size(config))
        return {"input_ids": ids(batch, seq_len), "pixel_values": images, "return_loss": True}
    labels = ids(*_labels_of(model, dims))
    tokens = {"input_ids": ids(batch, seq_len), "labels": labels}
    if "pixel_values" not in taken or "image_grid_thw" in taken:
        return tokens
    return {**tokens, "pixel_values": numbers(batch, *_image_size(config))}


def _labels_of(model: nn.Module, dims: Dims) -> tuple[int, ...]:
    """Shape of the labels of token ids: a class per sequence where sequences are classified, else one per token."""
    if type(model).__name__ in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values():
        return (dims["b"],)
    config: Any = model.config
    return dims["b"], dims.get("t", dims["s"]) if config.is_encoder_decoder else dims["s"]


def _hears(config: Any, taken: Container[str]) -> bool:
    """Whether a model is trained on audio: it takes nothing else, or its config says how much."""
    says = all(getattr(config, name, None) is not None for name in _OF_FEATURES)
    return "input_features" in taken and (says or "input_ids" not in taken)


def _image_size(config: Any) -> tuple[int, int, int]:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", _IMAGE_SIZE)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return getattr(config, "num_channels", _CHANNELS), height, width
