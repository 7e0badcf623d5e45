"""What the allocator's segments add to allocated bytes: replays of estimates that `LARGEST_BLOCK_OVERHEAD` rests on.

    python benchmarks/segments.py        (writes benchmarks/segments.json and prints the shares)

Models, batches, optimizers and checkpointing are drawn with a fixed seed; each run is replayed at its smallest sufficient cap.
"""

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.estimate import estimate_run, step_memory
from whatfits.estimator.memory.device import ALLOCATOR_OVERHEAD, LARGEST_BLOCK_OVERHEAD
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.specs import RunSpec

RESULTS = Path(__file__).with_name("segments.json")
MODELS = ("llama-60m", "llama-350m", "llama-1b", "llama-7b", "llama-3-8b", "llama-3.2-1b")
BATCHES = ((1, 512), (4, 1024), (16, 512), (2, 2048), (8, 2048), (1, 8192))
OPTIMIZERS = ("adamw", "sgd", "adamw_8bit", "apollo_mini", "galore_adamw", "lion")


def replayed(run: dict[str, Any]) -> dict[str, Any]:
    """Allocated, required and largest block of one run, in bytes."""
    found = estimate_run(RunSpec.model_validate(run))
    memory, training = step_memory(resolve_run(found.spec)), found.spec.training
    sizes = rounded_sizes(memory.table, memory.symbols(training.micro_batch_size, training.seq_len))
    return {
        "run": run,
        "allocated": found.memory.peak_allocated_bytes,
        "required": found.memory.required_reserved_bytes,
        "largest_block": int(sizes.max()),
    }


def runs() -> list[dict[str, Any]]:
    random.seed(1)
    found = []
    for model, (batch, seq_len) in product(MODELS, BATCHES):
        for optimizer, checkpointing in random.sample(list(product(OPTIMIZERS, ("none", "full"))), 3):
            training = {
                "micro_batch_size": batch,
                "seq_len": seq_len,
                "optimizer": {"name": optimizer},
                "activation_checkpointing": checkpointing,
            }
            found.append({"model": model, "training": training, "hardware": {"gpu": "h100-80gb-sxm"}})
    return found


def share_below(rows: list[dict[str, Any]], of_allocated: float, of_block: float) -> float:
    """Share of runs whose segments add no more than these parts of allocated bytes and of the largest block."""
    within: list[bool] = [
        row["required"] - row["allocated"]
        <= of_allocated * row["allocated"] + of_block * row["largest_block"]
        for row in rows
    ]
    return sum(within) / len(within)


def main() -> None:
    rows = [replayed(run) for run in runs()]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    overhead, block = ALLOCATOR_OVERHEAD, LARGEST_BLOCK_OVERHEAD
    print(f"{len(rows)} runs; within the high bound {share_below(rows, overhead.high, block.high):.1%}")
    print(f"within the median {share_below(rows, overhead.median, block.median):.1%}")
    print(f"most {max(row['required'] / row['allocated'] - 1 for row in rows):+.1%}")


if __name__ == "__main__":
    main()
