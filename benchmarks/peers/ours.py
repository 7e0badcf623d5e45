"""The product's own answers to the questions that are put to other tools."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accuracy.compare import FAILURES
from benchmarks.accuracy.evaluate import Interpreters, evaluate
from benchmarks.accuracy.published_runs import run_of
from benchmarks.peers.questions import run_of_question
from whatfits.estimator.catalog.published import load_published
from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.specs import RunSpec

__all__ = ["answer_headline", "answer_published", "cold_seconds"]


def answer_headline(question: dict[str, Any]) -> dict[str, Any]:
    """Allocated bytes of the busiest GPU and the verdict."""
    started = time.perf_counter()
    found = estimate_run(RunSpec.model_validate(run_of_question(question)))
    seconds = time.perf_counter() - started
    memory, interval = found.memory, found.memory.device_bytes
    return {
        "allocated_bytes": memory.peak_allocated_bytes or memory.peak_requested_bytes,
        "fits": {"yes": True, "no": False}.get(str(found.fits), str(found.fits)),
        "seconds": seconds,
        "says": f"{found.fits}: {interval.low / 1e9:.1f} to {interval.high / 1e9:.1f} GB of {memory.usable_bytes / 1e9:.1f}; "
        f"{found.time.step_time_seconds.median if found.time else float('nan'):.2f} s a step",
    }


def answer_published(row: str, interpreters: Interpreters) -> dict[str, Any]:
    """Allocated bytes with a profile of the row's library versions."""
    published = load_published()[row]
    try:
        found = evaluate(run_of(published), published.stack, interpreters)
    except FAILURES as error:
        return {"refused": str(error)[:200]}
    return {
        "allocated_bytes": found.allocated,
        "fits": found.verdict == "yes",
        "seconds": found.seconds,
        "says": found.how,
    }


def cold_seconds() -> float:
    """Wall time of the headline run in a fresh process of the command line."""
    whatfits = Path(sys.executable).with_name("whatfits")
    command = [
        str(whatfits),
        "estimate",
        "--model",
        "llama-13b",
        "--gpus",
        "8xa100-80gb",
        "--optimizer",
        "adamw",
        "--micro-batch",
        "1",
        "--json",
    ]
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started
