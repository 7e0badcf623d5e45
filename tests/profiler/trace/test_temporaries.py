"""What each op allocates on `meta` under the rules equals what it allocated on an H100 when run alone.

The operations are those of benchmarks/gpu_recordings/ops.py, made on `meta` by the same code.
"""

import gzip
import importlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from whatfits.profiler.trace.cuda_differences import cuda_semantics, device_steps, in_place_on_device
from whatfits.profiler.trace.events import Alloc, Free, Phase, Token
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.storages import StorageRecorder

FOLDER = Path(__file__).parents[3] / "benchmarks/gpu_recordings"
RECORDED = FOLDER / "h100-80gb_torch-2.11_2026-11-24/ops.jsonl.gz"
NUM_CASES = {
    "amax_rows": 128, "argsort_stable": 23, "bmm_expanded": 2, "bmm_transposed": 2, "cross_entropy": 24, "cumsum": 23,
    "dropout": 24, "embedding_backward": 92, "foreach_norm": 14, "gather": 6, "histc": 3, "index_add": 3,
    "index_backward": 23, "index_select": 6, "isfinite_all": 7, "layer_norm": 24, "linear": 32, "max": 6, "max_rows": 128,
    "mean_columns": 128, "norm_all": 128, "norm_rows": 128, "rms_norm": 24, "sdpa": 812, "softmax": 6, "sort": 23,
    "sort_rows": 6, "sum_all": 128, "sum_columns": 128, "sum_rows": 256, "sum_rows_batched": 128, "topk_rows": 23,
}  # fmt: skip
"""Recorded cases of each op; of the many every n-th is checked here, all of them by `make verify`."""
MOST = 30

Event = tuple[str, int, int]
"""Allocation or free, bytes, and which of the operation's blocks (-1 for one from before)."""


@cache
def recorded_cases() -> dict[str, list[Event]]:
    """The events of each operation's call, by its spec."""
    found = {}
    with gzip.open(RECORDED, "rt") as lines:
        for case in map(json.loads, lines):
            if case.get("spec", {}).get("op") in NUM_CASES:
                found[json.dumps(case["spec"], sort_keys=True)] = recorded_call(case)
    return found


def recorded_call(case: dict[str, Any]) -> list[Event]:
    trace, start, stop = case["trace"], *(p["events_before"] for p in case["phases"][1:3])
    live: dict[int, int] = {}
    events: list[Event] = []
    for action, nbytes, address in zip(trace["actions"], trace["sizes"], trace["addresses"], strict=True):
        if action == "a":
            live[address] = len(events)
        if action in "af":
            events.append((action, nbytes, live[address] if action == "a" else live.pop(address)))
    return numbered(events[start:stop])


def numbered(events: list[Event]) -> list[Event]:
    """Blocks counted from the first of these events."""
    numbers: dict[int, int] = {}
    result = []
    for action, nbytes, block in events:
        if action == "a":
            numbers[block] = len(numbers)
        result.append((action, nbytes, numbers.get(block, -1)))
    return result


class MarkedRun:
    """Notes where in the tokens the call begins and ends."""

    def __init__(self, recorder: StorageRecorder, phase: Phase) -> None:
        self.recorder, self.phase = recorder, phase
        self.position: dict[str, int] = {}

    def mark(self, name: str, _step: int = 0) -> None:
        self.position[name] = len(self.recorder.tokens)
        self.recorder.phase = self.phase if name == "call" else "forward"


def traced_call(spec: dict[str, Any], function: Any) -> list[Event]:
    recorder = StorageRecorder(
        device_type="meta",
        current_module=lambda: "",
        temporaries=device_steps,
        in_place=in_place_on_device,
        scalar_answer=None,
    )
    backward = spec.get("pass") == "backward" or "backward" in spec["op"]
    run = MarkedRun(recorder, "backward" if backward else "forward")
    kernel = spec.get("kernel", "math")
    kernels = ("cudnn", "flash", "efficient", "math") if kernel == "chosen" else (kernel,)
    with cuda_semantics(StepOptions(kernels=kernels)), recorder:
        function(run)
    sizes = {t.block: t.nbytes for t in recorder.tokens if isinstance(t, Alloc)}
    call: list[Token] = recorder.tokens[run.position["call"] : run.position["drop"]]
    return numbered(
        [
            ("a" if isinstance(t, Alloc) else "f", sizes[t.block], t.block)
            for t in call
            if isinstance(t, Alloc | Free)
        ]
    )


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], Any]]:
    """Specs and functions of the recorded operations, on `meta`."""
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("ops")
    monkeypatch.setattr(module, "DEVICE", "meta")
    found: Iterator[tuple[dict[str, Any], Any]] = module.cases(False)
    return found


def check(operations: Iterator[tuple[dict[str, Any], Any]], names: set[str], most: int) -> dict[str, int]:
    """Compare at most so many cases of each op; returns how many there were."""
    seen: dict[str, int] = {}
    for spec, function in operations:
        name = spec["op"]
        if name not in names:
            continue
        seen[name] = seen.get(name, 0) + 1
        stride = -(-NUM_CASES[name] // most)
        if seen[name] % stride == 0:
            assert traced_call(spec, function) == recorded_cases()[json.dumps(spec, sort_keys=True)], spec
    return seen


@pytest.mark.parametrize(
    "most",
    [pytest.param(MOST, id="some"), pytest.param(max(NUM_CASES.values()), id="all", marks=pytest.mark.slow)],
)
def test_every_op_allocates_what_it_did_on_the_device(
    operations: Iterator[tuple[dict[str, Any], Any]], most: int
) -> None:
    assert check(operations, set(NUM_CASES), most) == NUM_CASES
