"""llm-analysis's answers, through its own Python interface; runs in its environment. Questions on stdin, answers on stdout."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"

import contextlib
import io
import json
import logging
import sys
import time
from typing import Any

from llm_analysis.analysis import (
    ActivationRecomputation,
    DSZeRO,
    LLMAnalysis,
)
from llm_analysis.config import (
    ModelConfig,
    ParallelismConfig,
    get_dtype_config_by_name,
    get_gpu_config_by_name,
)
from llm_analysis.logger import logger

logger.setLevel(logging.ERROR)


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Weights, gradients, states and activations of one GPU; verdict from the memory it says is left."""
    if question["lora_rank"]:
        return {"refused": "no adapters"}
    if question["optimizer"] != "adamw":
        return {"refused": f"no optimizer {question['optimizer']}"}
    c = question["config"]
    started = time.perf_counter()
    # It counts two matrices in a feed-forward block; LLaMA has three, so this width keeps the parameters.
    width = c["intermediate_size"] * 3 // 2
    model = ModelConfig(
        name=question["id"],
        num_layers=c["num_hidden_layers"],
        n_head=c["num_attention_heads"],
        num_key_value_heads=c.get("num_key_value_heads", c["num_attention_heads"]),
        hidden_dim=c["hidden_size"],
        vocab_size=c["vocab_size"],
        max_seq_len=question["seq_len"],
        ffn_embed_dim=width,
        expansion_ratio=width / c["hidden_size"],
        model_type="llama",
    )
    gpus = question["num_gpus"]
    analysis = LLMAnalysis(
        model,
        get_gpu_config_by_name(question["gpu_names"]["llm_analysis"]),
        get_dtype_config_by_name("w16a16e16"),
        ParallelismConfig(dp_size=gpus),
        flops_efficiency=0.5,
    )
    # Pure bf16 has no master copy and two bf16 moments; mixed precision is its default, fp32 master and moments.
    pure = question["precision"] == "bf16"
    found = analysis.training(
        batch_size_per_gpu=question["micro_batch_size"],
        gradient_accumulation_steps=1,
        seq_len=question["seq_len"],
        activation_recomputation=ActivationRecomputation.FULL
        if question["checkpointing"] == "full"
        else ActivationRecomputation.NONE,
        ds_zero=DSZeRO.STAGE_3 if question["sharding"] == "fsdp" else DSZeRO.NONE,
        flash_attn=question["attention"] != "eager",
        mlp_gated_linear_units=True,
        **({"master_weights_dtype_bytes": 0, "other_op_bytes": 4} if pure else {}),
    )
    left = found["memory_left_per_gpu"]
    return {
        "allocated_bytes": round(found["(weight+op_state+grad+act)_memory_per_gpu"]),
        "fits": left > 0,
        "seconds": time.perf_counter() - started,
        "says": f"memory left {left / 1e9:,.1f} GB; {found['latency_per_iter']:.3f} s a step at a FLOPs efficiency of 0.5",
    }


def answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return ask(question)
    except AssertionError as error:
        if "max_batch_size_per_gpu 0" in str(error):  # how it says that not even one sequence fits
            return {"fits": False, "says": str(error)[:60]}
        return {"refused": f"AssertionError: {error}"[:200]}
    except (ValueError, TypeError, ZeroDivisionError) as error:
        return {"refused": f"{type(error).__name__}: {error}"[:200]}


json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout)
