"""What a profile of one Hugging Face config takes for granted, in words."""

import json
from collections.abc import Iterator
from typing import Any

from whatfits.estimator.specs.enums import Inputs
from whatfits.estimator.specs.model import ModelSpec

__all__ = ["KERNEL_PACKAGES", "assumptions_of_config"]

_MAMBA = ("causal_conv1d", "mamba_ssm")
_DELTA = ("causal_conv1d", "fla")
KERNEL_PACKAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba", "mamba2", "nemotron_h", "zamba", "zamba2"),
        _MAMBA,
    ),
    **dict.fromkeys(
        ("bailing_hybrid", "glm5_next", "kimi_linear", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp"),
        _DELTA,
    ),
    **dict.fromkeys(("inkling", "inkling2", "lfm2", "lfm2_moe"), ("causal_conv1d",)),
}  # fmt: skip
"""Packages whose kernels transformers prefers to its own code, by the folder of a model's code there.

Source: transformers 5.23, `use_kernel_func_from_hub_with_fallback` in its modeling files."""
_OTHER_INPUTS = ("vision_config", "audio_config")
"""Keys of a config whose model could be given more than text."""


def assumptions_of_config(model: ModelSpec, target_seq_len: int | None) -> Iterator[str]:
    """What a profile of one config takes for granted."""
    if model.config is None:
        return
    yield f"{model.architecture} as transformers builds it from the config, with its own dropout."
    config = json.loads(model.config)
    packages = sorted(
        {
            p
            for kind in _values(config, "model_type")
            for p in KERNEL_PACKAGES.get(str(kind).removesuffix("_text"), ())
        }
    )
    if packages:
        yield (
            f"Computed without {' and '.join(packages)}, by the PyTorch code that transformers falls back to; the fused "
            "kernels of these packages, where they are installed, keep other tensors."
        )
    if any(_values(config, "layerdrop", "encoder_layerdrop", "decoder_layerdrop")):
        yield "No layer is left out (layerdrop): the step that takes most."
    if model.num_active_parameters is not None:
        yield (
            "Experts: all tokens times experts per token lie in one tensor each, so that memory does not depend on "
            "how tokens are routed (transformers' grouped_mm experts)."
        )
    if model.inputs is Inputs.TOKENS_AND_TARGETS and target_seq_len is None:
        yield "The decoder's targets are as long as the encoder's input."
    if model.inputs is Inputs.IMAGES_AND_TOKENS:
        yield "One image of the config's size per sequence; its tokens are part of seq_len."
    if model.inputs is Inputs.FEATURES:
        yield "Audio of the encoder's full length; seq_len counts the decoder's tokens."
    if model.inputs is Inputs.TOKENS and any(_values(config, *_OTHER_INPUTS)):
        yield "Text alone: no image and no audio comes with it."


def _values(config: Any, *names: str) -> list[Any]:
    """What a config and its parts have under some keys."""
    if not isinstance(config, dict):
        return []
    found = [value for key, value in config.items() if key in names]
    return found + [value for part in config.values() for value in _values(part, *names)]
