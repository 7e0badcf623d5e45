"""One-rank DDP and FSDP2 over NCCL: buckets, gather buffers, streams and what a communicator takes from the device."""

import os
from typing import Any

import steps
import torch
import torch.distributed as dist
from recorder import DEVICE, ON_GPU, Run


def setup() -> None:
    """A process group of one rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if ON_GPU else "gloo")


def specs() -> list[dict[str, Any]]:
    """Layouts of one rank."""
    base = {"model": "tiny", "b": 2, "s": 256, "precision": "bf16", "layers": 4, "steps": 3}
    found = [
        {**base, "layout": "ddp", **extra}
        for extra in (
            {},
            {"view": True},
            {"accum": 2},
            {"precision": "bf16_mixed"},
            {"model": "llama-130m", "layers": 12},
        )
    ]
    for extra in (
        {},
        {"reshard": False},
        {"mixed": True},
        {"checkpointing": "non_reentrant"},
        {"accum": 2},
        {"model": "llama-130m", "layers": 12},
        {"model": "llama-130m", "layers": 12, "mixed": True},
    ):
        found.append({**base, "layout": "fsdp2", **extra})
    return found


def train(spec: dict[str, Any], run: Run) -> None:
    """Three steps of AdamW (foreach) under a layout."""
    torch.manual_seed(0)
    run.mark("setup", -1)
    built = steps.build({**spec, "precision": "fp32" if spec.get("mixed") else spec["precision"]})
    vocab = steps.MODELS[spec["model"]]["V"]
    used = lambda: torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0] if ON_GPU else 0
    run.notes["used_before_wrap"] = used()
    run.mark("wrap", -1)
    if spec["layout"] == "ddp":
        model: Any = torch.nn.parallel.DistributedDataParallel(
            built, gradient_as_bucket_view=spec.get("view", False)
        )
    else:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if spec.get("mixed")
            else MixedPrecisionPolicy()
        )
        for layer in built.model.layers:
            fully_shard(layer, mp_policy=policy, reshard_after_forward=spec.get("reshard", True))
        fully_shard(built, mp_policy=policy, reshard_after_forward=spec.get("reshard", True))
        model = built
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    for step in range(spec["steps"]):
        for _ in range(spec.get("accum", 1)):
            run.mark("forward", step)
            given = steps._inputs(spec, vocab)
            with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=spec["precision"] == "bf16_mixed"):
                loss = model(**given).loss
            run.mark("backward", step)
            loss.backward()
            del given
        run.mark("optimizer", step)
        optimizer.step()
        optimizer.zero_grad()
        del loss
    run.notes["used_after_steps"] = used()
