"""Speed of the product on this machine: `make bench` prints the figures and writes benchmarks/speed.json.

Each figure with the bound it is held to: configurations evaluated a second on one core, the headline plan over REST on
a running server that has not seen the question, `whatfits plan` cold from the shell, `whatfits --help`; then estimates of
models nobody traced and compiled ones (`untraced.py`). The machine's load stands beside them.
"""

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from whatfits.estimator.catalog import find_gpu, find_model
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.estimate import Device, table_device_bytes
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.memory.peak import rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank, RankTensors
from whatfits.estimator.memory.verdict import Usable
from whatfits.estimator.profile import ProfileKey, load_table
from whatfits.estimator.specs import OptimizerName, OptimizerSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.untraced import cold_figures, compiled_figures

HERE = Path(__file__).parent
WHATFITS = str(Path(sys.executable).with_name("whatfits"))
HEADLINE = {"model": "llama-13b", "hardware": "8xa100-80gb"}
CONFIGURATIONS = 200_000
REPEATS = 7


def configurations_per_second() -> float:
    """Distinct (micro-batch, sequence) points of 13B on one core, every optimizer in turn, up to device bytes.

    Nothing is shared between optimizers here: sizes, rows, optimizer terms and device intervals are evaluated anew.
    """
    model, gpu = find_model("llama-13b"), find_gpu("a100-80gb-sxm")
    table = load_table(
        ProfileKey("LlamaForCausalLM", "bf16", "sdpa", "none", "standard", "many", "full", tied=False)
    )
    tensors = RankTensors(model, table.parameters, table.buffers, Placement.DDP)
    device = Device(gpu=gpu, usable=Usable(int(gpu.total_bytes or 0), 0.0), num_gpus=8)
    random = np.random.default_rng(0)
    batch = random.integers(2, 1024, CONFIGURATIONS)
    seq_len = random.integers(2, 32768, CONFIGURATIONS)
    none_accumulated = np.zeros(CONFIGURATIONS, dtype=bool)
    rates = []
    for name in [*OPTIMIZERS][:REPEATS]:
        spec = OptimizerSpec(name=OptimizerName(name))
        started = time.perf_counter()
        memory = StepMemory(table=table, optimizer=OptimizerOnRank.build(tensors, spec), gpu=gpu)
        sizes = rounded_sizes(table, {**model.dims, "b": batch, "s": seq_len})
        peaks = memory.peaks(sizes, accumulated=none_accumulated)
        table_device_bytes(peaks.nbytes, sizes.max(axis=1), Placement.DDP, device)
        rates.append(CONFIGURATIONS / (time.perf_counter() - started))
    return statistics.median(rates)


def headline_over_rest() -> float:
    """Seconds of the first POST /api/v1/plans a fresh server is asked; the median of several servers."""
    return statistics.median(_first_plan() for _ in range(3))


def _first_plan() -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [WHATFITS, "serve", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/v1/healthz")
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/v1/plans",
            data=json.dumps(HEADLINE).encode(),
            headers={"content-type": "application/json"},
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            plan = json.load(answer)
        elapsed = time.perf_counter() - started
    finally:
        server.terminate()
        server.wait(timeout=10)
    assert plan["candidates"], "the headline question has an answer"
    return elapsed


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310
                return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"no answer from {url}")


def shell_seconds(*arguments: str) -> float:
    """Wall time of a command in a fresh process; the median of several."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([WHATFITS, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> int:
    """Measure, print, write; 1 when a figure misses its bound."""
    figures: list[dict[str, Any]] = [
        _figure("configurations a second, one core", configurations_per_second(), "at least", 500_000),
        _figure("POST /plans, headline, first time, s", headline_over_rest(), "below", 0.2),
        _figure(
            "whatfits plan, cold, s",
            shell_seconds("plan", "llama-13b", "--gpus", "8xa100-80gb"),
            "below",
            1.0,
        ),
        _figure("whatfits --help, s", shell_seconds("--help"), "below", 0.3),
        *(_figure(*found) for found in (*cold_figures(), *compiled_figures())),
    ]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": [round(load, 2) for load in os.getloadavg()],
            "python": platform.python_version(),
        },
        "numpy": np.__version__,
        "figures": figures,
    }
    for figure in figures:
        held = "holds" if figure["holds"] else "MISSES"
        print(
            f"{figure['name']:48} {figure['value']:>14,.4f}  {figure['bound']:>8} {figure['limit']:,}  {held}"
        )
    (HERE / "speed.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(figure["holds"] for figure in figures) else 1


def _figure(name: str, value: float, bound: str, limit: float) -> dict[str, Any]:
    holds = value >= limit if bound == "at least" else value < limit
    return {"name": name, "value": value, "bound": bound, "limit": limit, "holds": holds}


if __name__ == "__main__":
    sys.exit(main())
