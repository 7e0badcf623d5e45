"""Step times of our own optimizers beside their public references, in one run: `make bench` writes optimizers.json.

Two sets of shapes in fp32: LLaMA-60M, and one layer of LLaMA-1B. Steps of both are timed in turn, and medians are
compared; steady steps and steps that refresh a projection apart. A reference is timed with and without its lists of
tensors, and the faster counts. Passes are bytes that operators move to and from memory over the bytes of the parameters,
counted by a dispatch mode that models a cache of 16 MiB; what happens inside a kernel is not seen.

Only some: ``python benchmarks/optimizers.py lion apollo --repeats 5 --shapes 1b``.
"""

import argparse
import json
import platform
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bitsandbytes
import galore_torch
import pytorch_optimizer
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from whatfits.optim_impls.build import complete_hyperparameters
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.registry import REGISTRY

HERE = Path(__file__).parent
NEVER = 10**6
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
    "1b": layer(2048, 5461),
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


_PO_PROJECTED = {"scale": 1.0, "projection_type": "std"}
_GALORE_PROJECTED = {"scale": 0.25, "proj_type": "std"}
REFERENCES: dict[str, Reference] = {
    "lion": Reference(make=pytorch_optimizer.Lion, has_lists=True),
    "adan": Reference(make=pytorch_optimizer.Adan, has_lists=True),
    "sm3": Reference(make=pytorch_optimizer.SM3, has_lists=True),
    "adam_8bit": Reference(make=bitsandbytes.optim.Adam8bit),
    "adamw_8bit": Reference(make=bitsandbytes.optim.AdamW8bit),
    "sgdm_8bit": Reference(make=bitsandbytes.optim.SGD8bit, settings={"lr": 1e-3, "momentum": 0.9}),
    "lion_8bit": Reference(make=bitsandbytes.optim.Lion8bit),
    "galore_adamw": Reference(
        make=galore_torch.GaLoreAdamW, settings={"no_deprecation_warning": True}, projected=_GALORE_PROJECTED
    ),
    "galore_adafactor": Reference(
        make=galore_torch.GaLoreAdafactor,
        settings={"lr": 1e-3, "relative_step": False, "scale_parameter": False},
        projected=_GALORE_PROJECTED,
    ),
    "fira": Reference(make=pytorch_optimizer.Fira, projected=_PO_PROJECTED, has_lists=True),
    "apollo": Reference(
        make=pytorch_optimizer.APOLLO,
        settings={"scale_type": "channel"},
        projected=_PO_PROJECTED,
        has_lists=True,
    ),
    "apollo_mini": Reference(
        make=pytorch_optimizer.APOLLO,
        settings={"scale_type": "tensor"},
        projected={**_PO_PROJECTED, "rank": 1},
        has_lists=True,
    ),
}
"""Others have no public implementation that runs on a CPU with torch 2.13 (research notes of 2026-11)."""


class Passes(TorchDispatchMode):
    """Bytes that operators move to and from memory, behind a cache that keeps what was used last; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self._cached: OrderedDict[tuple[int, int], bool] = OrderedDict()
        """Address and bytes of what is in the cache, last used last, and whether it was written there."""
        self._cached_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # the signature is torch's
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name, schema = func.overloadpacket.__name__, func._schema  # noqa: SLF001 (torch has no other way)
        if func.is_view or name.startswith(("empty", "detach", "_unsafe_view")):
            return result
        given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        written = [*tensors(result)]
        for argument in schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            found = [*tensors(given.get(argument.name))]
            if not (is_written and (name in WRITES_ONLY or argument.name.startswith("out"))):
                for tensor in found:
                    self._touch(tensor, writes=False)
            written += found if is_written else []
        for tensor in {t.data_ptr(): t for t in written}.values():
            self._touch(tensor, writes=True)
        return result

    def _touch(self, tensor: torch.Tensor, *, writes: bool) -> None:
        key = (tensor.data_ptr(), tensor.nbytes)
        is_dirty = self._cached.pop(key, None)
        if is_dirty is None:
            self._cached_bytes += tensor.nbytes
        if not (is_dirty if writes else is_dirty is not None):
            self.nbytes += tensor.nbytes
        self._cached[key] = bool(is_dirty) or writes
        while self._cached_bytes > CACHE_BYTES:
            (_, nbytes), _ = self._cached.popitem(last=False)
            self._cached_bytes -= nbytes


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Tensors in any nesting."""
    yield from (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


CACHE_BYTES = 16 * 2**20
WRITES_ONLY = frozenset({"copy_", "zero_", "fill_", "normal_", "_foreach_copy_", "_foreach_zero_"})


def parameters(shapes: Shapes) -> list[torch.nn.Parameter]:
    """Parameters with a gradient each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape, _ in shapes:
        made.append(torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02))
        made[-1].grad = torch.randn(shape, generator=generator) * 1e-3
    return made


def groups(shapes: Shapes, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """By role, as `build_optimizer` makes them."""
    found = []
    for role in Role:
        members = [param for param, (_, its) in zip(params, shapes, strict=True) if its is role]
        if members:
            found.append({"params": members, "param_names": [""] * len(members), "role": role.value})
    return found


def own(name: str, which: str, interval: int) -> torch.optim.Optimizer:
    """Our own optimizer on a set of shapes, as its defaults are but for rank and interval."""
    entry = REGISTRY[name]
    given = {"rank": RANKS[which], "projection_update_interval": interval}
    if name.endswith("mini"):
        del given["rank"]
    hyper = complete_hyperparameters(entry, {k: v for k, v in given.items() if k in entry.defaults})
    return entry.build(groups(SHAPES[which], parameters(SHAPES[which])), hyper)


def reference(name: str, which: str, interval: int, **lists: bool) -> torch.optim.Optimizer:
    """The public one on the same tensors."""
    made = REFERENCES[name]
    found = groups(SHAPES[which], parameters(SHAPES[which]))
    for group in found:
        if made.projected and group["role"] == Role.MATRIX:
            group.update({"rank": RANKS[which], "update_proj_gap": interval} | made.projected)
    settings = {"lr": 1e-3} | made.settings | lists
    return made.make(found, **settings)


def step_seconds(optimizers: dict[str, torch.optim.Optimizer], repeats: int) -> dict[str, list[float]]:
    """Times of steps taken in turn, after a step each that makes the state and is not timed."""
    seconds: dict[str, list[float]] = {key: [] for key in optimizers}
    for repeat in range(-1, repeats):
        for key, optimizer in optimizers.items():
            started = time.perf_counter()
            optimizer.step()
            if repeat >= 0:
                seconds[key].append(time.perf_counter() - started)
    return seconds


def count_passes(optimizer: torch.optim.Optimizer) -> float:
    """Bytes read and written in a step over the bytes of the parameters."""
    total = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    with Passes() as passes:
        optimizer.step()
    return float(passes.nbytes / total)


def compare(name: str, which: str, repeats: int, *, refreshes: bool) -> dict[str, Any]:
    """One row: our median, the reference's best median, their ratio and both pass counts."""
    interval = 1 if refreshes else NEVER
    optimizers = {"own": own(name, which, interval)}
    if name in REFERENCES:
        choices = ({"foreach": False}, {"foreach": True}) if REFERENCES[name].has_lists else ({},)
        for choice in choices:
            optimizers[f"reference {choice}"] = reference(name, which, interval, **choice)
    seconds = {key: statistics.median(times) for key, times in step_seconds(optimizers, repeats).items()}
    best = min((key for key in seconds if key != "own"), key=seconds.__getitem__, default=None)
    return {
        "name": name,
        "shapes": which,
        "step": "refresh" if refreshes else "steady",
        "own_seconds": seconds["own"],
        "reference_seconds": seconds[best] if best else None,
        "ratio": seconds["own"] / seconds[best] if best else None,
        "own_passes": count_passes(optimizers["own"]),
        "reference_passes": count_passes(optimizers[best]) if best else None,
        "reference": f"{REFERENCES[name].make.__module__.split('.')[0]}.{REFERENCES[name].make.__name__}"
        if best
        else None,
    }


def main() -> None:
    """Print a line a comparison and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shapes", choices=list(SHAPES), action="append")
    parser.add_argument("--no-refresh", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [name for name, e in REGISTRY.items() if e.source == "own" and name != "mezo"]
    rows = []
    for name in options.names or known:
        for which in options.shapes or SHAPES:
            has_refresh = REGISTRY[name].declaration.refresh_interval(REGISTRY[name].defaults) is not None
            for refreshes in (False, True) if has_refresh and not options.no_refresh else (False,):
                row = compare(name, which, 1 if refreshes else options.repeats, refreshes=refreshes)
                rows.append(row)
                print(format_row(row), flush=True)
    if not options.names:
        about = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": 1,
            "date": datetime.now(UTC).date().isoformat(),
        }
        (HERE / "optimizers.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def format_row(row: dict[str, Any]) -> str:
    """A line."""
    text = (
        f"{row['name']:20} {row['shapes']:4} {row['step']:8} {row['own_seconds'] * 1e3:9.1f} ms "
        f"{row['own_passes']:6.2f} passes"
    )
    if row["ratio"] is None:
        return f"{text}   no reference"
    missed = "  above 1.0" if row["ratio"] > 1 else ""
    return (
        f"{text}   {row['reference_seconds'] * 1e3:9.1f} ms {row['reference_passes']:6.2f} passes "
        f"ratio {row['ratio']:5.2f} of {row['reference']}{missed}"
    )


if __name__ == "__main__":
    main()
