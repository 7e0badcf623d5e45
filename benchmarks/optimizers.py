"""Step times and bytes of our own optimizers beside their public references: `make bench` writes optimizers.json.

Two sets of shapes in fp32: LLaMA-60M, and one matrix of each shape of a layer of LLaMA-1B with its two norms. Steps of
both sides are timed in turn on one thread, in CPU time, which other processes do not lengthen; medians are compared,
steady steps and steps that refresh a projection apart (`warm`: ours with subspace="warm", which needs no SVD). A
reference is timed with and without its lists of tensors, and the faster counts; its bytes are those of the setting that
holds fewest. A method without a public reference that runs on a CPU stands beside torch's AdamW(foreach=True), which is
marked and misses nothing.

Passes are bytes that operators move to and from memory over the bytes of the parameters, counted by a dispatch mode
that models a cache of 16 MiB; what happens inside a kernel is not seen. The first step makes the state and is not
timed; it takes unit vectors for singular vectors. A refresh above two seconds is timed once, as it is traced.

Only some: ``python benchmarks/optimizers.py lion apollo --repeats 3 --shapes 1b``.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bitsandbytes
import galore_torch
import pytorch_optimizer
import torch

from whatfits.optim_impls.build import complete_hyperparameters
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.registry import REGISTRY
from whatfits.profiler.trace.optimizer_step import peak_of_step, state_tensors, trace_optimizer_step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.passes import Passes  # noqa: E402 (the path is set above)

NEVER = 10**6
LIMIT, AIM = 1.0, 0.7
"""Step times over the reference's: never above the one, to be at most the other."""
SLOW_SECONDS = 2.0
Shapes = list[tuple[tuple[int, ...], Role]]


def layer(hidden: int, feed_forward: int) -> Shapes:
    """Weights of one decoder layer."""
    matrices = [(hidden, hidden)] * 4 + [(feed_forward, hidden)] * 2 + [(hidden, feed_forward)]
    return [*((shape, Role.MATRIX) for shape in matrices), ((hidden,), Role.VECTOR), ((hidden,), Role.VECTOR)]


SHAPES: dict[str, Shapes] = {
    "60m": [
        ((32000, 512), Role.EMBEDDING),
        *(tensor for _ in range(8) for tensor in layer(512, 1376)),
        ((512,), Role.VECTOR),
        ((32000, 512), Role.HEAD),
    ],
    "1b": [*dict.fromkeys(layer(2048, 5461)), ((2048,), Role.VECTOR)],
}
RANKS = {"60m": 128, "1b": 512}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A public implementation of one of our own methods."""

    make: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)
    projected: dict[str, Any] = field(default_factory=dict)
    """Keys of the group of matrices, for low-rank methods."""
    has_lists: bool = False
    """Whether it can be timed with and without lists of tensors."""
    is_opaque: bool = False
    """Whether its operators hold temporaries a trace of operators does not see: the allocator is asked on both sides."""
    remark: str = ""
    """What the reader must know of the comparison."""


_PO_PROJECTED = {"scale": 1.0, "projection_type": "std"}
_GALORE_PROJECTED = {"scale": 0.25, "proj_type": "std"}
_APOLLO = Reference(
    make=pytorch_optimizer.APOLLO,
    settings={"scale_type": "channel"},
    projected=_PO_PROJECTED,
    has_lists=True,
)
_APOLLO_MINI = replace(_APOLLO, settings={"scale_type": "tensor"}, projected={**_PO_PROJECTED, "rank": 1})
REFERENCES: dict[str, Reference] = {
    "lion": Reference(make=pytorch_optimizer.Lion, has_lists=True),
    "adan": Reference(make=pytorch_optimizer.Adan, has_lists=True),
    "sm3": Reference(make=pytorch_optimizer.SM3, has_lists=True),
    # The same step between estimates of the Hessian: the count, in the first group, says that one is done.
    "sophia": Reference(
        make=pytorch_optimizer.SophiaH,
        settings={"update_period": NEVER},
        projected={"step": 1},
        has_lists=True,
        remark="between estimates",
    ),
    "adam_8bit": Reference(make=bitsandbytes.optim.Adam8bit, is_opaque=True),
    "adamw_8bit": Reference(make=bitsandbytes.optim.AdamW8bit, is_opaque=True),
    "sgdm_8bit": Reference(
        make=bitsandbytes.optim.SGD8bit, settings={"lr": 1e-3, "momentum": 0.9}, is_opaque=True
    ),
    "lion_8bit": Reference(make=bitsandbytes.optim.Lion8bit, is_opaque=True),
    "galore_adamw": Reference(
        make=galore_torch.GaLoreAdamW, settings={"no_deprecation_warning": True}, projected=_GALORE_PROJECTED
    ),
    "galore_adafactor": Reference(
        make=galore_torch.GaLoreAdafactor,
        settings={"lr": 1e-3, "relative_step": False, "scale_parameter": False},
        projected=_GALORE_PROJECTED,
    ),
    "fira": Reference(make=pytorch_optimizer.Fira, projected=_PO_PROJECTED, has_lists=True),
    "apollo": _APOLLO,
    "apollo_mini": _APOLLO_MINI,
    "q_apollo": replace(_APOLLO, remark="reference has fp32 moments"),
    "q_apollo_mini": replace(_APOLLO_MINI, remark="reference has fp32 moments"),
}
BESIDE = Reference(make=torch.optim.AdamW, settings={"foreach": True}, remark="not a reference")
NO_REFERENCE = {"galore_adamw_8bit": "no reference runs on a CPU", "q_galore": "no reference runs on a CPU"}
"""Others have no public implementation in a package (research notes of 2026-11)."""


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    """Parameters with a gradient each, of the same values for every optimizer."""
    made = []
    for values, gradient in random_tensors(tuple(shape for shape, _ in shapes)):
        made.append(torch.nn.Parameter(values.clone()))
        made[-1].grad = gradient.clone()
    return made


@lru_cache(maxsize=1)
def random_tensors(shapes: tuple[tuple[int, ...], ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Values and gradients, kept since drawing them takes longer than most steps."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    return [(draw(shape) * 0.02, draw(shape) * 1e-3) for shape in shapes]


def groups(shapes: Shapes, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """By role, as `build_optimizer` makes them."""
    found = []
    for role in Role:
        members = [param for param, (_, its) in zip(params, shapes, strict=True) if its is role]
        if members:
            found.append({"params": members, "param_names": [""] * len(members), "role": role.value})
    return found


def own(name: str, which: str, **more: str) -> torch.optim.Optimizer:
    """Our own optimizer on a set of shapes, as its defaults are but for rank and interval."""
    entry = REGISTRY[name]
    given = {"rank": RANKS[which], "projection_update_interval": NEVER}
    if name.endswith("mini"):
        del given["rank"]
    chosen = {k: v for k, v in (given | more).items() if k in entry.defaults}
    hyper = complete_hyperparameters(entry, chosen)
    return entry.build(groups(SHAPES[which], parameters(SHAPES[which])), hyper)


def reference(made: Reference, which: str, **lists: bool) -> torch.optim.Optimizer:
    """The public one on the same tensors."""
    found = groups(SHAPES[which], parameters(SHAPES[which]))
    for group in found:
        if made.projected and group["role"] == Role.MATRIX:
            group.update({"rank": RANKS[which], "update_proj_gap": NEVER} | made.projected)
    return made.make(found, **({"lr": 1e-3} | made.settings | lists))


def refresh_always(optimizer: torch.optim.Optimizer) -> None:
    """From now on each step refreshes its projections, which the packages decide in groups, states or helper objects."""
    for group in optimizer.param_groups:
        group.update({k: 1 for k in ("projection_update_interval", "update_proj_gap") if k in group})
    for state in optimizer.state.values():
        for holder in [*state.values()]:
            if hasattr(holder, "update_proj_gap"):
                holder.update_proj_gap = 1
        if "next_refresh" in state:
            # Q-GaLore's own interval, whatever its subspaces do.
            state.update(interval=1, next_refresh=state["step"] + 1, alike=-NEVER)


@contextmanager
def unit_vectors_for_singular_vectors() -> Iterator[None]:
    """SVDs cost nothing inside; for steps that are not measured."""
    svd = torch.linalg.svd

    def cheap(matrix: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, ...]:
        m, n = matrix.shape
        k = min(m, n)
        sides = (m, n) if full_matrices else (k, k)
        return torch.eye(m, sides[0]), torch.ones(k), torch.eye(sides[1], n)

    torch.linalg.svd = cheap
    try:
        yield
    finally:
        torch.linalg.svd = svd


def timed(step: Callable[[], object]) -> float:
    """CPU seconds of a step."""
    started = time.process_time()
    step()
    return time.process_time() - started


def allocator_peak(optimizer: torch.optim.Optimizer) -> int:
    """Highest sum of live bytes over a step by the CPU allocator's own events."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        optimizer.step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the storages that hold the state, each once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_tensors(optimizer)
    }
    return sum(storages.values())


def measure(
    optimizers: dict[str, torch.optim.Optimizer], repeats: int, *, once: bool = False, opaque: bool = False
) -> dict[str, dict[str, Any]]:
    """Seconds, passes and bytes of the next steps of each, taken in turn; slow ones just `once` if told so."""
    found = {}
    for key, optimizer in optimizers.items():
        numel_bytes = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
        with Passes() as passes:
            started = time.process_time()
            events = trace_optimizer_step(optimizer)
            seconds = time.process_time() - started
        found[key] = {
            "seconds": seconds,
            "passes": passes.nbytes / numel_bytes,
            "transient_bytes": allocator_peak(optimizer) if opaque else peak_of_step(events),
            "state_bytes": state_bytes(optimizer),
        }
    if not once or max(row["seconds"] for row in found.values()) < SLOW_SECONDS:
        times: dict[str, list[float]] = {key: [] for key in optimizers}
        for _ in range(repeats):
            for key, taken in times.items():
                taken.append(timed(optimizers[key].step))
        for key, taken in times.items():
            found[key]["seconds"] = statistics.median(taken)
    return found


def compare(name: str, which: str, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for the steady step and one for the step that refreshes, if there is one."""
    other = REFERENCES.get(name, BESIDE)
    optimizers = {"own": own(name, which)}
    for choice in ({"foreach": False}, {"foreach": True}) if other.has_lists else ({},):
        optimizers[f"{choice or ''}"] = reference(other, which, **choice)
    with unit_vectors_for_singular_vectors():
        for optimizer in optimizers.values():
            optimizer.step()
    yield row_of(name, which, "steady", measure(optimizers, repeats, opaque=other.is_opaque))
    if REGISTRY[name].declaration.refresh_interval(REGISTRY[name].defaults) is not None:
        for optimizer in optimizers.values():
            refresh_always(optimizer)
        if "subspace" in REGISTRY[name].defaults:
            # Beside the same exact refreshes of the reference.
            optimizers["warm"] = own(name, which, subspace="warm")
            optimizers["warm"].step()
            refresh_always(optimizers["warm"])
        found = measure(optimizers, repeats, once=True)
        warm = found.pop("warm", None)
        yield row_of(name, which, "refresh", found)
        if warm is not None:
            yield row_of(name, which, "warm", found | {"own": warm})


def row_of(name: str, which: str, step: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours, the best of the reference, their ratio, and what is missed."""
    mine, others = found["own"], [row for key, row in found.items() if key != "own"]
    best = min(others, key=lambda row: row["seconds"])
    other = REFERENCES.get(name, BESIDE)
    least = {key: min(row[key] for row in others) for key in ("state_bytes", "transient_bytes")}
    row = {
        "name": name,
        "shapes": which,
        "step": step,
        "ratio": mine["seconds"] / best["seconds"],
        "reference": f"{other.make.__module__.split('.')[0]}.{other.make.__name__}"
        if name in REFERENCES
        else None,
        "beside": None if name in REFERENCES else "torch.AdamW(foreach=True)",
        "remark": other.remark if name in REFERENCES else NO_REFERENCE.get(name, "no public reference"),
        "own": mine,
        "other": best | least,
    }
    return row | {"missed": missed(row) if name in REFERENCES else []}


def missed(row: dict[str, Any]) -> list[str]:
    """What the method promises and does not keep here."""
    found = []
    if row["ratio"] > AIM:
        limit = f"the limit of {LIMIT}x" if row["ratio"] > LIMIT else f"the aim of {AIM}x"
        found.append(f"time {row['ratio']:.2f}x, above {limit}")
    found += [
        f"{key} {row['own'][key]}, reference {row['other'][key]}"
        for key in ("state_bytes", "transient_bytes")
        if row["own"][key] > row["other"][key]
    ]
    return found


def main() -> None:
    """Print a line a comparison and what is missed, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", choices=list(SHAPES), action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [name for name, e in REGISTRY.items() if e.source == "own" and name != "mezo"]
    started, rows = time.perf_counter(), []
    print(HEADER)
    # The sets outside, so that their tensors are drawn once.
    for which in options.shapes or SHAPES:
        for name in options.names or known:
            for row in compare(name, which, options.repeats):
                rows.append(row)
                print(format_row(row), flush=True)
    print_missed(rows)
    if not options.names:
        about = {
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "threads": 1,
            "repeats": options.repeats,
            "date": datetime.now(UTC).date().isoformat(),
            "run_seconds": round(time.perf_counter() - started),
        }
        (HERE / "optimizers.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


PACKAGES = ("torch", "bitsandbytes", "galore-torch", "pytorch-optimizer")
HEADER = (
    f"{'method':18} {'set':3} {'step':7} | {'own: ms':>8} {'passes':>6} {'state MiB':>9} {'trans. MiB':>10} | "
    f"{'other: ms':>9} {'passes':>6} {'state MiB':>9} {'trans. MiB':>10} | ratio"
)


def format_row(row: dict[str, Any]) -> str:
    """A line of the table."""
    mine, other = row["own"], row["other"]
    sides = [
        f"{side['seconds'] * 1e3:{8 + i}.1f} {side['passes']:6.2f} {side['state_bytes'] / 2**20:9.1f} "
        f"{side['transient_bytes'] / 2**20:10.2f}"
        for i, side in enumerate((mine, other))
    ]
    of = row["reference"] or f"{row['beside']} ({row['remark']})"
    remark = f" ({row['remark']})" if row["reference"] and row["remark"] else ""
    return f"{row['name']:18} {row['shapes']:3} {row['step']:7} | {sides[0]} | {sides[1]} | {row['ratio']:5.2f} of {of}{remark}"


def print_missed(rows: Iterable[dict[str, Any]]) -> None:
    """A line for each miss."""
    for row in rows:
        for miss in row["missed"]:
            passes = f"passes {row['own']['passes']:.2f} and {row['other']['passes']:.2f}"
            print(f"missed: {row['name']} {row['shapes']} {row['step']}: {miss}; {passes}")


if __name__ == "__main__":
    main()
