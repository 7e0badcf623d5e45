"""fitcheck's answers, through its own estimator; runs in fitcheck's environment. Questions on stdin, answers on stdout.

Its command line reads config.json from the Hub alone, so the parsed model is built here with its own parser's functions.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"

import json
import sys
import time
from typing import Any

from fitcheck import config_parser
from fitcheck.estimator import (
    TrainingConfig,
    estimate,
)
from fitcheck.gpu_db import get_gpu

MIB = 2**20
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
# Its precision is that of the weights and gradients; fp32 weights under autocast are its fp32.
PRECISION = {"bf16": ("bf16", "bf16"), "bf16_mixed": ("fp32", "fp32")}


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Tensor terms without its overhead stand against allocated memory; the verdict is its own, with overhead."""
    if question["sharding"] != "none":
        return {"refused": "one GPU only; no sharding"}
    if question["optimizer"] != "adamw":
        return {"refused": f"no optimizer {question['optimizer']}"}
    raw = question["config"]
    started = time.perf_counter()
    try:
        config_parser._reject_unsupported(raw, question["id"])  # noqa: SLF001 (its loader without the download)
        fields = config_parser._parse_fields(raw)  # noqa: SLF001 (the same)
        model = config_parser.ModelConfig(
            name=question["id"],
            num_params=config_parser._count_params(fields),  # noqa: SLF001 (the same)
            hidden_size=fields.hidden_size,
            num_layers=fields.num_layers,
            num_attention_heads=fields.num_attention_heads,
            num_kv_heads=fields.num_kv_heads,
            intermediate_size=fields.intermediate_size,
            vocab_size=fields.vocab_size,
            head_dim=fields.head_dim,
            tie_word_embeddings=fields.tie_word_embeddings,
        )
        precision, state = PRECISION[question["precision"]]
        found = estimate(
            model,
            TrainingConfig(
                precision=precision,
                optimizer="adamw",
                optimizer_dtype="fp32" if question["lora_rank"] else state,
                batch_size=question["micro_batch_size"],
                seq_len=question["seq_len"],
                lora_rank=question["lora_rank"],
                lora_targets=TARGETS,
                grad_checkpoint=question["checkpointing"] == "full",
                flash_attn=question["attention"] != "eager",
            ),
            get_gpu(question["gpu_names"]["fitcheck"]),
        )
    except (ValueError, RuntimeError) as error:
        return {"refused": str(error)[:200]}
    return {
        "allocated_bytes": round((found.total_mib - found.overhead_mib) * MIB),
        "fits": found.fits,
        "seconds": time.perf_counter() - started,
        "says": f"{found.verdict}: {found.total_mib:,.0f} MiB with overhead of {found.gpu_capacity_mib:,.0f}",
    }


json.dump([ask(question) for question in json.load(sys.stdin)], sys.stdout)
