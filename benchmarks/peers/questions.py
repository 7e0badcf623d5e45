"""The questions put to every tool: the headline one, and single-GPU runs whose memory somebody measured."""

from typing import Any

from benchmarks.accuracy.eligibility import eligible_rows
from benchmarks.accuracy.published_runs import config_of
from whatfits.estimator.catalog import catalog_config, find_gpu
from whatfits.estimator.catalog.published import Quantity

__all__ = ["headline_questions", "published_questions", "run_of_question"]

GPU_NAMES = {
    "rtx-a6000": {"vramcalc": "RTX A6000", "fitcheck": "a6000", "llm_analysis": "a6000-48gb"},
    "a100-80gb-sxm": {"vramcalc": "A100 80GB", "fitcheck": "a100-80", "llm_analysis": "a100-sxm-80gb"},
}
"""What each tool calls a GPU."""
HEADLINE_MODEL = "llama-1-13b"


def headline_questions() -> list[dict[str, Any]]:
    """LLaMA-13B on 8 A100-80GB, micro-batch 1 of 2,048 tokens in bf16: replicated, sharded, and with APOLLO-Mini."""
    gpu = "a100-80gb-sxm"
    shared = {
        "config": {"model_type": "llama", **catalog_config(HEADLINE_MODEL)},
        "method": "full",
        "precision": "bf16",
        "micro_batch_size": 1,
        "seq_len": 2048,
        "checkpointing": "none",
        "attention": "sdpa",
        "lora_rank": None,
        "gpu": gpu,
        "gpu_names": GPU_NAMES[gpu],
        "gpu_bytes": find_gpu(gpu).total_bytes,
        "num_gpus": 8,
        "measured_bytes": None,
    }
    asked = (
        ("adamw-ddp", "adamw", "none"),
        ("adamw-sharded", "adamw", "fsdp"),
        ("apollo_mini-ddp", "apollo_mini", "none"),
    )
    return [
        {**shared, "id": name, "optimizer": optimizer, "sharding": sharding}
        for name, optimizer, sharding in asked
    ]


def published_questions() -> list[dict[str, Any]]:
    """The eligible rows whose model is a Hugging Face one, with what was measured."""
    questions = []
    for row in eligible_rows().values():
        if row.loop != "vramcalc_bench":
            continue
        assert row.gpu_catalog is not None, "the rule lets no row without a GPU through"
        (reading,) = (r for r in row.measured if r.quantity is Quantity.PEAK_ALLOCATED)
        questions.append(
            {
                "id": row.id,
                "config": config_of(row),
                "method": row.method,
                "precision": row.precision,
                "micro_batch_size": row.micro_batch_size,
                "seq_len": row.seq_len,
                "optimizer": row.optimizer,
                "sharding": "none",
                "checkpointing": row.checkpointing,
                "attention": row.attention,
                "lora_rank": row.rank,
                "gpu": row.gpu_catalog,
                "gpu_names": GPU_NAMES[row.gpu_catalog],
                "gpu_bytes": find_gpu(row.gpu_catalog).total_bytes,
                "num_gpus": 1,
                "measured_bytes": reading.nbytes,
            }
        )
    return questions


def run_of_question(question: dict[str, Any]) -> dict[str, Any]:
    """A headline question as a RunSpec."""
    shards = question["sharding"] == "fsdp"
    gpus = question["num_gpus"]
    return {
        "model": question["config"],
        "training": {
            "precision": question["precision"],
            "micro_batch_size": question["micro_batch_size"],
            "seq_len": question["seq_len"],
            "optimizer": {"name": question["optimizer"]},
            "activation_checkpointing": question["checkpointing"],
        },
        "parallelism": {"dp_shard_degree": gpus} if shards else {"dp_replicate_degree": gpus},
        "hardware": {"gpu": question["gpu"], "num_gpus": gpus},
    }
