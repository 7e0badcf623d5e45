"""vramcalc's answers, through its own Python interface; runs in vramcalc's environment. Questions on stdin, answers on stdout."""

# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vramcalc import estimate

PRECISION = {"bf16": "pure", "bf16_mixed": "amp"}


def ask(question: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Total is its prediction of allocated memory, on one GPU."""
    if question["sharding"] != "none":
        return {"refused": "one GPU only; no sharding"}
    if question["optimizer"] != "adamw":
        return {"refused": f"no optimizer {question['optimizer']}"}
    path = folder / "config.json"
    path.write_text(json.dumps(question["config"]))
    started = time.perf_counter()
    found = estimate(
        str(folder),
        mode="train",
        dtype="bf16",
        batch=question["micro_batch_size"],
        seq_len=question["seq_len"],
        lora_rank=question["lora_rank"],
        grad_checkpoint=question["checkpointing"] == "full",
        optimizer="adamw",
        precision=PRECISION[question["precision"]],
        attn_impl=question["attention"],
    )
    fit = found.fits(question["gpu_names"]["vramcalc"])
    seconds = time.perf_counter() - started
    return {"allocated_bytes": found.total, "fits": fit.ok, "seconds": seconds, "says": fit.message}


with tempfile.TemporaryDirectory() as name:
    json.dump([ask(question, Path(name)) for question in json.load(sys.stdin)], sys.stdout)
