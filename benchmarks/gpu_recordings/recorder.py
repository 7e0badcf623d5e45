"""Records what torch's CUDA caching allocator does, into gzipped JSON lines. Imports torch and the standard library only.

One line per case: its spec, the phases it went through (each with the number of allocator events before it and the
counters at its end), every allocator action as columns, step times, or the error that ended it. A case is written as
soon as it ends, so that whatever stops the program later loses nothing.
"""

import gc
import gzip
import json
import platform
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
_ACTIONS = {
    "alloc": "a",
    "free_completed": "f",
    "segment_alloc": "S",
    "segment_free": "F",
    "segment_map": "M",
    "segment_unmap": "U",
    "oom": "O",
}
_COUNTERS = {
    "allocated": "allocated_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "requested": "requested_bytes.all.current",
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
    "peak_requested": "requested_bytes.all.peak",
    "peak_active": "active_bytes.all.peak",
    "segments": "segment.all.current",
    "retries": "num_alloc_retries",
}


class Run:
    """What a case's function gets: it marks phases and times steps."""

    def __init__(self) -> None:
        self.phases: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] = []
        self.notes: dict[str, Any] = {}

    def mark(self, phase: str, step: int = 0) -> None:
        """The phase before this one ends here; torch's peak counters start anew."""
        stats = torch.cuda.memory_stats() if ON_GPU else {}
        if self.phases:
            self.phases[-1] |= {name: stats.get(key, 0) for name, key in _COUNTERS.items()}
        before = stats.get("allocation.all.allocated", 0) + stats.get("allocation.all.freed", 0)
        self.phases.append({"phase": phase, "step": step, "events_before": before})
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()


def clean(collect: bool = True) -> None:
    """Bring the allocator back to no segment at all."""
    if collect:
        gc.collect()
    if ON_GPU:
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def columns(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Allocator actions as columns; addresses relative to the lowest one, streams numbered in order of handle."""
    kept = [e for e in entries if e["action"] in _ACTIONS]
    lowest = min((e["addr"] for e in kept if "addr" in e), default=0)
    ranks = {handle: rank for rank, handle in enumerate(sorted({e["stream"] for e in kept}))}
    return {
        "actions": "".join(_ACTIONS[e["action"]] for e in kept),
        "sizes": [e["size"] for e in kept],
        "addresses": [e["addr"] - lowest if "addr" in e else -1 for e in kept],
        "streams": [ranks[e["stream"]] for e in kept] if len(ranks) > 1 else [],
    }


def environment() -> dict[str, Any]:
    """Versions and the device."""
    names = (
        "transformers",
        "peft",
        "numpy",
        "triton",
        "bitsandbytes",
        "torchao",
        "pytorch_optimizer",
        "galore_torch",
    )
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if ON_GPU:
        p = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        found |= {
            "gpu": p.name,
            "total_memory": p.total_memory,
            "sms": p.multi_processor_count,
            "threads_per_sm": p.max_threads_per_multi_processor,
            "capability": f"{p.major}.{p.minor}",
            "cudnn": torch.backends.cudnn.version(),
            "used_after_context": total - free,
        }
    return found


class Recorder:
    """Writes cases to one file until a deadline."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._deadline = time.monotonic() + seconds
        self._collect = True
        gc.collect()
        gc.freeze()
        self.num_done = self.num_failed = self.num_skipped = 0
        path.write_bytes(b"")
        self._write(
            {"environment": environment(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        )

    def case(
        self,
        spec: dict[str, Any],
        function: Callable[[Run], None],
        *,
        events: bool = True,
        collect: bool = True,
    ) -> None:
        """Run one case from an empty allocator and write what it did."""
        if time.monotonic() > self._deadline:
            self.num_skipped += 1
            return
        started, run, line = time.monotonic(), Run(), {"spec": spec}
        clean(collect=self._collect)
        self._collect = collect
        if ON_GPU and events:
            torch.cuda.memory._record_memory_history(enabled=None)
            torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python")
        first = torch.cuda.memory_stats() if ON_GPU else {}
        base = first.get("allocation.all.allocated", 0) + first.get("allocation.all.freed", 0)
        line["allocated_before"] = first.get("allocated_bytes.all.current", 0)
        try:
            function(run)
        except Exception as error:  # whatever stops one case is that case's result
            line["error"] = f"{type(error).__name__}: {str(error)[:600]}"
            line["traceback"] = traceback.format_exc()[-1500:]
            self.num_failed += 1
            self._collect = True
            print("FAILED", spec, line["error"][:200], flush=True)
            del error
        run.mark("end")
        if ON_GPU:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            line["device_used"] = total - free
        for phase in run.phases:
            phase["events_before"] -= base
        line |= {"phases": run.phases, "notes": run.notes}
        if run.times:
            line["times"] = run.times
        if ON_GPU and events:
            line["trace"] = columns(torch.cuda.memory._snapshot()["device_traces"][0])
            torch.cuda.memory._record_memory_history(enabled=None)
        line["seconds"] = round(time.monotonic() - started, 3)
        self._write(line)
        self.num_done += 1

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        with self._path.open("ab") as file:
            file.write(gzip.compress(text.encode(), 6, mtime=0))


class Stopwatch:
    """CUDA-event times between named points of a step."""

    def __init__(self) -> None:
        self._points: list[tuple[str, Any]] = []

    def point(self, name: str) -> None:
        """Name the stretch that starts here."""
        if ON_GPU:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self._points.append((name, event))

    def read(self) -> dict[str, float]:
        """Milliseconds of each stretch."""
        if ON_GPU:
            torch.cuda.synchronize()
        out: dict[str, float] = {}
        for (name, start), (_, stop) in zip(self._points, self._points[1:], strict=False):
            ms = start.elapsed_time(stop) if ON_GPU else 1e3 * (stop - start)
            out[name] = round(out.get(name, 0.0) + ms, 4)
        return out
