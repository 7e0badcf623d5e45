"""The model of runs on a CPU."""

from typing import Any

__all__ = ["TINY"]

# Any: a config holds arbitrary JSON.
TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
"""A config.json of a model that a CPU trains in milliseconds."""
