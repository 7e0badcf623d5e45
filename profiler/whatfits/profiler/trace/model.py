"""Build the model to be traced: unchanged Hugging Face code, on `meta` without any weights."""

from typing import Any

import torch
import transformers
from torch import nn

from whatfits.profiler.trace.checkpoints import checkpoint_layers
from whatfits.profiler.trace.configs import build_from_config
from whatfits.profiler.trace.losses import install_loss
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.own_module import build_own

__all__ = ["CONFIGS", "build_model", "causal_model", "head_name", "parameter_role", "traced_parameters"]

CONFIGS: dict[str, str] = {"LlamaForCausalLM": "LlamaConfig", "Qwen2ForCausalLM": "Qwen2Config"}
"""Configuration class of each architecture, both by their names in transformers."""

_STORED = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16_mixed": torch.float32,
    "fp16_mixed": torch.float32,
}
_FROZEN = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(dims: Dims, options: StepOptions, device: str = "meta") -> nn.Module:
    """Instantiate the model in training mode, without allocating weights on `meta`.

    Adapter, checkpointing and loss are added in the order users add them: peft around the model, then
    checkpointing.

    Raises:
        NotImplementedError: the architecture has no configuration here.
    """
    with torch.device(device):
        model: Any = _make_model(dims, options)
    install_loss(model, options.loss)
    if options.adapter is not None:
        from whatfits.profiler.trace.adapters import attach_adapter  # noqa: PLC0415  (peft is needed for this alone)

        model = attach_adapter(model, options.adapter, rank=dims["r"], precision=options.precision)
    checkpoint_layers(model, options.checkpointing)
    model.train()
    built: nn.Module = model
    return built


def _make_model(dims: Dims, options: StepOptions) -> nn.Module:
    dtype = _stored_dtype(options)
    if options.factory:
        return build_own(options.factory, dtype)
    if options.config:
        return build_from_config(
            options.config,
            dims.get("L"),
            architecture=options.architecture,
            attention="eager" if options.attention == "eager" else None,
            dtype=dtype,
        )
    model: nn.Module = getattr(transformers, options.architecture)._from_config(
        _make_config(dims, options), dtype=dtype, attn_implementation=options.attention
    )
    return model


def _make_config(dims: Dims, options: StepOptions) -> Any:
    if options.architecture not in CONFIGS:
        known = ", ".join(CONFIGS)
        raise NotImplementedError(f"no configuration for {options.architecture}, only for {known}")
    return getattr(transformers, CONFIGS[options.architecture])(
        num_hidden_layers=dims["L"],
        hidden_size=dims["h"],
        intermediate_size=dims["i"],
        num_attention_heads=dims["a"],
        num_key_value_heads=dims["k"],
        head_dim=dims["d"],
        vocab_size=dims["V"],
        tie_word_embeddings=options.tie_embeddings,
        attention_dropout=options.dropout,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


def _stored_dtype(options: StepOptions) -> torch.dtype:
    """Dtype of the weights; under a mixed precision an adapter's frozen base may be narrower than fp32."""
    stored = _STORED[options.precision]
    mixed = options.precision.endswith("_mixed")
    return _FROZEN[options.adapter.frozen] if options.adapter is not None and mixed else stored


def causal_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model itself, which computes the loss, inside whatever peft put around it."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return inner


def parameter_role(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """linear, embedding, head or vector: the distinction optimizers make."""
    if parameter.ndim != 2:
        return "vector"
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Embedding):
        return "embedding"
    return "head" if owner is _head_of(causal_model(model)) else "linear"


def _head_of(model: Any) -> Any:
    """The layer that makes the logits."""
    found = getattr(model, "lm_head", None)
    if found is None and hasattr(model, "get_output_embeddings"):
        found = model.get_output_embeddings()
    return found


def head_name(model: nn.Module) -> str:
    """Path of the layer that makes the logits; empty where there is none."""
    head = _head_of(causal_model(model))
    return next((name for name, module in model.named_modules() if module is head), "")


def traced_parameters(model: nn.Module) -> tuple[tuple[str, tuple[int, ...], int, str, bool], ...]:
    """Name, shape, bytes per element, role and whether it trains, in module order."""
    return tuple(
        (n, tuple(p.shape), p.element_size(), parameter_role(model, n, p), p.requires_grad)
        for n, p in model.named_parameters()
    )
