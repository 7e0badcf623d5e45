"""Small requests for the measuring child, and how tests carry them out."""

from typing import Any

from whatfits.estimator.specs import MeasurementResult, MeasureRequest, Progress
from whatfits.profiler.measure.runner import measure

__all__ = ["GPT2", "TINY", "make_request", "measured"]

TINY: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
"""A model that a CPU trains in milliseconds."""


GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "vocab_size": 96,
    "n_positions": 16,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""A model whose profile does not ship."""


def make_request(**changes: Any) -> MeasureRequest:
    """A run on a CPU of one warm-up and two measured steps; `model`, `training` and parts of the spec replace its own."""
    training = {"micro_batch_size": 2, "seq_len": 16, **changes.pop("training", {})}
    spec = {
        "model": changes.pop("model", TINY),
        "training": training,
        "hardware": {"gpu": "h100-80gb-sxm", **changes.pop("hardware", {})},
        **changes.pop("spec", {}),
    }
    steps = {"warmup_steps": 1, "measured_steps": 2}
    return MeasureRequest.model_validate({"spec": spec, "device": "cpu", **steps, **changes})


def measured(request: MeasureRequest) -> tuple[MeasurementResult, list[Progress]]:
    """The result of a request and the progress told on the way."""
    told: list[Progress] = []
    return measure(request, told.append), told
