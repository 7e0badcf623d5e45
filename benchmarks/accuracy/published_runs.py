"""A published row as the question the product is asked."""

from typing import Any

from whatfits.estimator.catalog import catalog_config
from whatfits.estimator.catalog.published import PublishedRow

__all__ = ["config_of", "run_of"]

_MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
_METHODS = {"pretrain": "full"}
_LOOPS: dict[str, dict[str, Any]] = {
    "vramcalc_bench": {"set_grads_to_none": False, "keep_outputs": "backward", "empty_cache_each_step": True},
}
"""The loops of catalog/published/loops.json in the product's words."""


def config_of(row: PublishedRow) -> dict[str, Any]:
    """The Hugging Face config of a row's model."""
    m = row.model
    if m.catalog is not None:
        return {"model_type": "llama", **catalog_config(m.catalog)}
    assert m.architecture is not None, "the rule lets no row without an architecture through"
    return {
        "model_type": _MODEL_TYPES[m.architecture],
        "architectures": [m.architecture],
        "num_hidden_layers": m.num_layers,
        "hidden_size": m.hidden_size,
        "intermediate_size": m.intermediate_size,
        "num_attention_heads": m.num_attention_heads,
        "num_key_value_heads": m.num_key_value_heads or m.num_attention_heads,
        "vocab_size": m.vocab_size,
        "tie_word_embeddings": m.tie_embeddings,
        "max_position_embeddings": max(4096, row.seq_len or 0),
    }


def run_of(row: PublishedRow, stack: dict[str, str] | None = None) -> dict[str, Any]:
    """A RunSpec as JSON."""
    assert row.method is not None, "the rule lets no row without a method through"
    assert row.loop is not None, "the rule lets no row without a loop through"
    method = _METHODS.get(row.method, row.method)
    training: dict[str, Any] = {
        "method": method,
        "precision": row.precision,
        "micro_batch_size": row.micro_batch_size,
        "seq_len": row.seq_len,
        "grad_accum_steps": row.grad_accum_steps or 1,
        "optimizer": {"name": row.optimizer, "implementation": row.implementation or "foreach"},
        "activation_checkpointing": row.checkpointing,
        "attention": row.attention,
        "loop": _LOOPS[row.loop],
    }
    if method != "full":
        training["adapter"] = {"rank": row.rank, "targets": list(row.adapter_targets)}
    run: dict[str, Any] = {
        "model": config_of(row),
        "training": training,
        "hardware": {"gpu": row.gpu_catalog, "num_gpus": row.num_gpus},
    }
    return run if stack is None else {**run, "stack": stack}
