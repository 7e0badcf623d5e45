"""Forward and backward of training steps recorded on an H100, and traces of the same steps.

Recorded with torch 2.11 and transformers 5.17; later transformers free one tensor of the rotary embedding earlier, before
the first layer. cuBLAS workspaces are in the recordings only.
"""

from functools import cache
from pathlib import Path
from typing import Any

from whatfits.profiler.measure.recordings import RecordedCase, read_recording
from whatfits.profiler.trace.events import Alloc, Free
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.training_step import MicroBatchTracer

FOLDER = Path(__file__).parents[3] / "benchmarks/gpu_recordings/h100-80gb_torch-2.11_2026-11-24"
TINY: Dims = {"L": 3, "b": 2, "s": 256, "h": 512, "i": 1376, "a": 8, "k": 8, "d": 64, "V": 32000, "r": 8}
KERNELS = ("cudnn", "flash", "efficient", "math")
"""What torch 2.11 prefers on an H100."""
_BASE = {"model": "tiny", "b": 2, "s": 256, "precision": "bf16", "optimizer": "adamw_foreach"}
_WORKSPACE_BYTES = 33_554_432
_BEFORE_FIRST_LAYER = 45

Events = list[tuple[str, int]]


@cache
def _cases(part: str) -> tuple[RecordedCase, ...]:
    return tuple(read_recording(FOLDER / f"{part}.jsonl.gz"))


def recorded_events(part: str, **spec: Any) -> Events:
    """(part of the step, signed bytes) of the second step of the one case with this spec."""
    (case,) = (c for c in _cases(part) if c.spec == {**_BASE, **spec} and c.trace is not None)
    assert case.trace is not None
    live: dict[int, int] = {}
    signed = []
    columns = (case.trace.actions, case.trace.sizes, case.trace.addresses)
    for action, nbytes, address in zip(*columns, strict=True):
        if action == "a":
            live[address] = nbytes
            signed.append(nbytes)
        elif action == "f":
            signed.append(-live.pop(address))
    events: Events = []
    for phase, following in zip(case.phases, case.phases[1:], strict=False):
        if phase["step"] == 1 and phase["phase"] in ("forward", "loss", "backward"):
            part_of_step = "backward" if phase["phase"] == "backward" else "forward"
            within = signed[phase["events_before"] : following["events_before"]]
            events += [(part_of_step, n) for n in within if abs(n) != _WORKSPACE_BYTES]
    return events


def traced_events(dims: Dims, options: StepOptions) -> Events:
    """The same of a trace."""
    tracer = MicroBatchTracer(build_model(dims, options), options)
    parts = tracer.micro_batch(dims["b"], dims["s"])
    sizes: dict[int, int] = {}
    events: Events = []
    for part in ("forward", "backward"):
        for token in parts[part]:
            if isinstance(token, Alloc):
                sizes[token.block] = token.nbytes
                events.append((part, token.nbytes))
            elif isinstance(token, Free):
                events.append((part, -sizes[token.block]))
    return events


def assert_same_events(
    traced: Events,
    recorded: Events,
    *,
    ordered_frees: bool = True,
    before_first_layer: int = _BEFORE_FIRST_LAYER,
) -> None:
    """Every event in order; before the first layer the same events.

    Where autocast drops its kept casts, all at once, their order is that of a hash table: `ordered_frees=False` compares
    frees that follow one another as a set.
    """
    start = before_first_layer
    assert sorted(traced[:start]) == sorted(recorded[:start])
    if ordered_frees:
        assert traced[start:] == recorded[start:]
    else:
        assert _frees_sorted(traced[start:]) == _frees_sorted(recorded[start:])


def _frees_sorted(events: Events) -> Events:
    found: Events = []
    run: Events = []
    for event in events:
        if event[1] < 0:
            run.append(event)
        else:
            found += [*sorted(run), event]
            run = []
    return found + sorted(run)
