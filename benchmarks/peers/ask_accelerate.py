"""What `accelerate estimate-memory` would print, from its own functions; runs in accelerate's environment.

The command looks the model up on the Hub; here the same empty model is built from the config at hand.
"""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"

import json
import sys
import time
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.commands.estimate import (
    estimate_training_usage,
)
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModel

DTYPE = {"bf16": "bfloat16", "bf16_mixed": "bfloat16"}


def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Its "Training using Adam": no batch, no sequence, no sharding, no adapters; a GPU is not asked for."""
    if question["sharding"] != "none":
        return {"refused": "no sharding"}
    if question["lora_rank"]:
        return {"refused": "no adapters"}
    if question["optimizer"] != "adamw":
        return {"refused": f"no optimizer {question['optimizer']}"}
    started = time.perf_counter()
    config = AutoConfig.for_model(**question["config"])
    with init_empty_weights():
        model = AutoModel.from_config(config, dtype=torch.float32)
    total, _ = calculate_maximum_sizes(model)
    usage = estimate_training_usage(total, DTYPE[question["precision"]])
    allocated = max(usage.values())
    return {
        "allocated_bytes": round(allocated),
        "fits": allocated <= question["gpu_bytes"],
        "seconds": time.perf_counter() - started,
        "says": "no verdict of its own: compared with the device's memory",
    }


json.dump([ask(question) for question in json.load(sys.stdin)], sys.stdout)
