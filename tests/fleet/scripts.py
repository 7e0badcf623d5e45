"""Requests for the scripted child, and the function that has them carried out."""

import itertools
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

from whatfits.estimator.specs import MeasurementFailure, MeasurementResult, MeasureRequest, Progress
from whatfits.profiler.measure.child_process import run_command

__all__ = ["Script", "make_body", "run_scripted"]

_PROGRAM = Path(__file__).with_name("scripted_child.py")
_numbers = itertools.count(1)


class Script(IntEnum):
    """What the child does."""

    SUCCEED = 0
    RUN_OUT_OF_MEMORY = 1
    RAISE = 2
    DIE = 3
    HANG = 4
    """Never answers, and does not end when it is asked to."""
    HALF_A_SECOND = 5
    """Takes its time; so do all larger numbers, of tenths of a second."""
    TWO_SECONDS = 20


def make_body(script: int = Script.SUCCEED, **changes: Any) -> dict[str, Any]:
    """What a client posts; no two are the same question."""
    spec = {
        "model": "galore-llama-60m",
        "training": {"seq_len": 64, "precision": "fp32"},
        "hardware": {"gpu": "a100-80gb-sxm"},
    }
    seed = next(_numbers) * 100 + script
    return {"spec": spec, "device": "cpu", "num_layers": 2, "seed": seed, "timeout_seconds": 60, **changes}


def run_scripted(
    request: MeasureRequest,
    *,
    on_progress: Callable[[Progress], object],
    should_stop: Callable[[], bool],
) -> MeasurementResult | MeasurementFailure | None:
    """As `run_child` does with the real one."""
    command = [sys.executable, "-I", "-S", str(_PROGRAM)]
    return run_command(
        request, command, visible_devices=None, on_progress=on_progress, should_stop=should_stop
    )
