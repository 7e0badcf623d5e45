"""The smallest memory cap under which a training run completes: what `required_reserved_bytes` predicts."""

from typing import Any

import steps
import torch
from recorder import ON_GPU, Run, clean

GRANULARITY = 2 << 20


def find_smallest_cap(spec: dict[str, Any], run: Run) -> None:
    """Bisect the cap between the peaks allocated and reserved of an uncapped run, to 2 MiB."""
    total = torch.cuda.get_device_properties(0).total_memory if ON_GPU else 1 << 36
    trials: list[list[int]] = []

    def completes(cap: int | None) -> tuple[bool, int, int]:
        clean()
        if ON_GPU:
            torch.cuda.reset_accumulated_memory_stats()
            torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else cap / total)
        inner = Run()
        try:
            steps.train(spec)(inner)
            ok = True
        except torch.OutOfMemoryError:
            ok = False
        inner.mark("end")
        allocated = max(p.get("peak_allocated", 0) for p in inner.phases)
        reserved = max(p.get("peak_reserved", 0) for p in inner.phases)
        retries = torch.cuda.memory_stats().get("num_alloc_retries", 0) if ON_GPU else 0
        trials.append([-1 if cap is None else cap, int(ok), allocated, reserved, retries])
        return ok, allocated, reserved

    run.mark("uncapped")
    _, allocated, reserved = completes(None)
    low, high = allocated - GRANULARITY, reserved
    while high - low > GRANULARITY:
        middle = (low + high) // 2
        ok, _, _ = completes(middle)
        low, high = (low, middle) if ok else (middle, high)
    if ON_GPU:
        torch.cuda.set_per_process_memory_fraction(1.0)
    run.notes |= {
        "trials": trials,
        "fails_at": low,
        "completes_at": high,
        "uncapped_allocated": allocated,
        "uncapped_reserved": reserved,
    }


def specs() -> list[dict[str, Any]]:
    """Runs whose reserved bytes exceed the allocated ones by different amounts."""
    base = {"precision": "bf16", "optimizer": "adamw_foreach", "steps": 3}
    found = []
    for model, b, s in (
        ("llama-60m", 16, 512), ("llama-60m", 3, 1000), ("llama-60m", 1, 2048), ("llama-60m", 7, 333), ("llama-130m", 8, 512), ("llama-130m", 5, 777),
        ("llama-130m", 1, 1777), ("llama-350m", 4, 1024), ("llama-350m", 3, 1000), ("llama-350m", 1, 2048),
    ):  # fmt: skip
        found.append({**base, "model": model, "b": b, "s": s})
        found.append({**base, "model": model, "b": b, "s": s, "checkpointing": "non_reentrant"})
    for extra in (
        {"optimizer": "sgd_foreach"},
        {"optimizer": "adamw_fused"},
        {"precision": "bf16_mixed"},
        {"precision": "fp32"},
        {"accum": 3},
        {"attention": "eager"},
    ):
        found.append({**base, "model": "llama-130m", "b": 8, "s": 512, **extra})
    return found


def capped_specs() -> list[dict[str, Any]]:
    """Some of these runs again with their history, at caps just above and at or below the smallest that completes."""
    base = {"precision": "bf16", "optimizer": "adamw_foreach", "steps": 3}
    found = []
    for model, b, s, checkpointing, caps in (
        ("llama-130m", 8, 512, True, (2720, 2718, 2690)), ("llama-130m", 5, 777, True, (2608, 2600)), ("llama-350m", 4, 1024, True, (5474, 4560, 4557, 4500)),
        ("llama-350m", 3, 1000, True, (4012, 4009, 3975)), ("llama-60m", 16, 512, False, (6338, 6335)), ("llama-350m", 1, 2048, False, (5406, 5403)),
    ):  # fmt: skip
        for cap in caps:
            extra = {"checkpointing": "non_reentrant"} if checkpointing else {}
            found.append({**base, "model": model, "b": b, "s": s, **extra, "cap_mib": cap})
    return found


def train_capped(spec: dict[str, Any], run: Run) -> None:
    """Train under the spec's cap; running out of memory is a result."""
    total = torch.cuda.get_device_properties(0).total_memory if ON_GPU else 1 << 36
    if ON_GPU:
        torch.cuda.set_per_process_memory_fraction(spec["cap_mib"] * 2**20 / total)
    try:
        steps.train(spec)(run)
        run.notes["completed"] = True
    except torch.OutOfMemoryError as error:
        run.notes |= {"completed": False, "message": str(error)[:300]}
    finally:
        if ON_GPU:
            torch.cuda.set_per_process_memory_fraction(1.0)
