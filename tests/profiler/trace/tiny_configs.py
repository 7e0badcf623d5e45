"""Configs of models of many families, small enough to run on a CPU within a second."""

from typing import Any

from whatfits.estimator.profile import canonical_config

__all__ = ["TINY", "VOCAB", "tiny_config"]

VOCAB = 320
_SIZES = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCAB}
_DENSE = {**_SIZES, "intermediate_size": 176, "num_key_value_heads": 4, "max_position_embeddings": 512}
_GATED = {**_DENSE, "head_dim": 16, "pad_token_id": 0}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_CLIP_VISION = {**_VISION, "model_type": "clip_vision_model", "num_hidden_layers": 2}
_CLIP_TEXT = {
    **_SIZES,
    "model_type": "clip_text_model",
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_MLA = {
    **_SIZES, **_EXPERTS, "intermediate_size": 176, "num_key_value_heads": 4, "n_routed_experts": 8,
    "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 24,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip

TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_head": 4, "n_positions": 512, "vocab_size": VOCAB, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {**_SIZES, "intermediate_size": 128, "max_position_embeddings": 512},
    "opt": {**_SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 512, "dropout": 0.0},
    "bloom": {"hidden_size": 64, "n_head": 4, "vocab_size": VOCAB},
    "phi": {**_SIZES, "intermediate_size": 128, "max_position_embeddings": 512},
    "phi3": {**_GATED},
    "gemma2": {**_GATED, "sliding_window": 256},
    "gemma3_text": {**_GATED, "sliding_window": 256},
    "mistral": {**_GATED, "sliding_window": None},
    "qwen3": {**_GATED},
    "olmo2": {**_DENSE, "pad_token_id": 0, "eos_token_id": 1},
    "stablelm": {**_DENSE},
    "mixtral": {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_GATED, **_EXPERTS, "num_experts": 4},
    "deepseek_v3": _MLA,
    "mamba": {"hidden_size": 64, "state_size": 16, "vocab_size": VOCAB},
    "mamba2": {"hidden_size": 64, "state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 32,
               "vocab_size": VOCAB},
    "gemma4_text": {**_GATED, "sliding_window": 256, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB},
    "m2m_100": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4,
                "decoder_attention_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 512},
    "bert": {**_SIZES, **_NO_DROPOUT, "intermediate_size": 128},
    "roberta": {**_SIZES, **_NO_DROPOUT, "intermediate_size": 128},
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_heads": 4, "vocab_size": VOCAB, "dropout": 0.0, "attention_dropout": 0.0},
    "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "vocab_size": VOCAB, "dropout_rate": 0.0},
    "bart": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "vocab_size": VOCAB, "dropout": 0.0, "max_position_embeddings": 512},
    "whisper": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4,
                "decoder_attention_heads": 4, "vocab_size": VOCAB, "dropout": 0.0, "max_source_positions": 64,
                "max_target_positions": 64, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                "decoder_start_token_id": 3},
    "vit": {**_VISION, **_NO_DROPOUT},
    "deit": {**_VISION, **_NO_DROPOUT},
    "clip": {"vision_config": _CLIP_VISION, "text_config": _CLIP_TEXT, "projection_dim": 32},
    "llava": {"vision_config": _CLIP_VISION, "text_config": {**_GATED, "model_type": "llama"}, "image_token_index": 7},
}  # fmt: skip
"""By model type, without their depths."""
_DEPTH_NAMES = {
    "gpt2": ("n_layer",), "bloom": ("n_layer",), "distilbert": ("n_layers",), "t5": ("num_layers", "num_decoder_layers"),
    "bart": ("encoder_layers", "decoder_layers"), "m2m_100": ("encoder_layers", "decoder_layers"), "whisper": ("encoder_layers", "decoder_layers"),
}  # fmt: skip


def tiny_config(model_type: str, num_layers: int = 2, **changes: Any) -> str:
    """The canonical text of a model type's config at a depth; of each stack, where there are two."""
    given = {**TINY[model_type], **changes}
    if "text_config" in given:
        given["text_config"] = {**given["text_config"], "num_hidden_layers": num_layers}
    else:
        given |= dict.fromkeys(_DEPTH_NAMES.get(model_type, ("num_hidden_layers",)), num_layers)
    return canonical_config({"model_type": model_type, **given})
