"""Speed of answers about models nobody traced, and of compiled ones: a section of `make bench`.

Cold: `whatfits estimate` of a config from the shell with an empty user folder, so that a child builds and traces it.
Compiled: estimates from shipped profiles, loaded, at points not asked before; from the table alone, as plans are
answered, and with the replay of the allocator, which `estimate` adds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whatfits.estimator import estimate_run
from whatfits.estimator.specs import RunSpec

__all__ = ["cold_figures", "compiled_figures"]

WHATFITS = str(Path(sys.executable).with_name("whatfits"))
COLD = {
    # Mistral-7B-v0.1's and Llama-3-70B's shapes with a vocabulary no catalog model has: nobody traced these.
    "7B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        6.0,
    ),
    "70B": (
        {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        9.0,
    ),
}
MOST_MIB = 600
REPEATS = 3
POINTS = 25
COMPILED = ("llama-7b", "mistral-7b")
COMPILED_SECONDS = 0.005


def cold_figures() -> Iterator[tuple[str, float, str, float]]:
    """Name, value, bound and limit: wall seconds, processor seconds and the largest process, of the median run."""
    for name, (shape, limit) in COLD.items():
        config = {"model_type": "mistral", "num_key_value_heads": 8, "vocab_size": 32123, **shape}
        wall, processor, largest = sorted(_cold(config) for _ in range(REPEATS))[REPEATS // 2]
        yield f"estimate of an untraced {name}, cold, s", wall, "below", limit
        yield f"estimate of an untraced {name}, processor time, s", processor, "below", limit
        yield f"estimate of an untraced {name}, largest process, MiB", largest, "below", MOST_MIB


def _cold(config: dict[str, Any]) -> tuple[float, float, float]:  # Any: a Hugging Face config
    """Wall seconds, processor seconds and the largest resident size in MiB of a process or its children."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        environment = {**os.environ, "XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder}
        environment.pop("WHATFITS_PROFILES", None)
        command = [WHATFITS, "estimate", "--model", str(path), "--gpus", "8xa100-80gb", "--json"]
        # A process of its own between: what getrusage says of children is of all there ever were.
        measure = (
            "import json, resource, subprocess, sys, time\n"
            "started = time.perf_counter()\n"
            "status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode\n"
            "wall = time.perf_counter() - started\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(json.dumps([status, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", measure, *command],
            check=True, capture_output=True, text=True, env=environment,
        )  # fmt: skip
    status, wall, processor, largest = json.loads(done.stdout)
    assert status in (0, 1), "it fits or it does not"
    return wall, processor, largest


def compiled_figures() -> Iterator[tuple[str, float, str, float]]:
    """Name, value, bound and limit: median seconds of processor time of one estimate, from the table and with a replay."""
    for model in COMPILED:
        for how, parallelism, limit in (
            ("table", {"dp_shard_degree": 8, "zero_stage": 3}, COMPILED_SECONDS),
            ("table and replay", {"dp_replicate_degree": 8}, 1.0),
        ):
            yield f"compiled {model}, {how}, s", _compiled(model, parallelism), "below", limit


def _compiled(model: str, parallelism: dict[str, int]) -> float:
    def ask(seq_len: int) -> float:
        training = {"micro_batch_size": 2, "seq_len": seq_len}
        hardware = {"gpu": "a100-80gb-sxm", "num_gpus": 8}
        run = RunSpec.model_validate(
            {"model": model, "training": training, "parallelism": parallelism, "hardware": hardware}
        )
        started = time.process_time()
        estimate_run(run)
        return time.process_time() - started

    ask(512)  # loads the profile
    return statistics.median(ask(528 + 16 * number) for number in range(POINTS))
