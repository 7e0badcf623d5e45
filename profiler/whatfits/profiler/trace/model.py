"""Build the model to be traced: unchanged Hugging Face code, on `meta` without any weights."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from whatfits.profiler.trace.options import Dims, StepOptions

__all__ = ["build_model", "parameter_role", "traced_parameters"]

_STORED = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16_mixed": torch.float32,
    "fp16_mixed": torch.float32,
}


def build_model(dims: Dims, options: StepOptions, device: str = "meta") -> nn.Module:
    """Instantiate the model with the given dims in training mode, without allocating weights on `meta`."""
    config = LlamaConfig(
        num_hidden_layers=dims["L"],
        hidden_size=dims["h"],
        intermediate_size=dims["i"],
        num_attention_heads=dims["a"],
        num_key_value_heads=dims["k"],
        head_dim=dims["d"],
        vocab_size=dims["V"],
        tie_word_embeddings=options.tie_embeddings,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.device(device):
        model = LlamaForCausalLM._from_config(
            config, dtype=_STORED[options.precision], attn_implementation="sdpa"
        )
    if options.checkpointing == "full":
        # `gradient_checkpointing_enable` is its name in earlier releases.
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    model.train()
    built: nn.Module = model
    return built


def parameter_role(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """linear, embedding, head or vector: the distinction optimizers make."""
    if parameter.ndim < 2:
        return "vector"
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Embedding):
        return "embedding"
    return "head" if owner is getattr(model, "lm_head", None) else "linear"


def traced_parameters(model: nn.Module) -> tuple[tuple[str, tuple[int, ...], int, str, bool], ...]:
    """Name, shape, bytes per element, role and whether it trains, in module order."""
    return tuple(
        (n, tuple(p.shape), p.element_size(), parameter_role(model, n, p), p.requires_grad)
        for n, p in model.named_parameters()
    )
