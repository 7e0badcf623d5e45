"""`python record.py PART OUT SECONDS [--small]`: record one part of the cases into OUT (gzipped JSON lines)."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from recorder import Recorder

BASE: dict[str, Any] = {"model": "tiny", "b": 2, "s": 256, "precision": "bf16", "optimizer": "adamw_foreach"}
PRECISIONS = ("fp32", "bf16", "bf16_mixed", "fp16_mixed", "bf16_master")


def step_specs() -> Iterator[dict[str, Any]]:
    """Steps whose every allocation is recorded: the sequence is held against the trace."""
    for p in PRECISIONS:
        yield {"precision": p}
        yield {"precision": p, "checkpointing": "non_reentrant"}
        yield {"precision": p, "attention": "eager"}
    yield {"checkpointing": "reentrant"}
    for optimizer in (
        "none",
        "sgd_for_loop",
        "sgd_foreach",
        "sgdm_foreach",
        "sgdm_fused",
        "adamw_for_loop",
        "adamw_fused",
    ):
        yield {"optimizer": optimizer}
    for p in ("bf16", "bf16_mixed"):
        for b, s in ((1, 256), (4, 256), (1, 500), (4, 500), (3, 1000), (2, 2048)):
            yield {"precision": p, "b": b, "s": s}
            yield {"precision": p, "b": b, "s": s, "checkpointing": "non_reentrant"}
        for model in ("tiny-gqa", "tiny-tied", "tiny-d128"):
            yield {"precision": p, "model": model}
            yield {"precision": p, "model": model, "b": 1, "s": 500, "checkpointing": "non_reentrant"}
    for p in ("bf16", "fp32", "bf16_mixed"):
        for kernel in ("flash", "efficient", "math", "cudnn"):
            if not (p == "fp32" and kernel in ("flash", "cudnn")):
                yield {"precision": p, "kernel": kernel}
                yield {"precision": p, "kernel": kernel, "model": "tiny-gqa", "b": 1, "s": 500}
    for mask in ("ones", "padded", "packed"):
        for attention in ("sdpa", "eager"):
            for p in ("bf16", "bf16_mixed"):
                yield {"mask": mask, "attention": attention, "precision": p}
                yield {"mask": mask, "attention": attention, "precision": p, "b": 1, "s": 500}
    for clip in ("default", "foreach", "for_loop"):
        for p in ("bf16", "fp32", "fp16_mixed"):
            yield {"clip": clip, "precision": p}
    for p in ("bf16", "bf16_mixed", "fp32"):
        yield {"attention_dropout": 0.1, "precision": p}
        yield {"attention_dropout": 0.1, "precision": p, "attention": "eager"}
        yield {"precision": p, "accum": 2}
        yield {"precision": p, "accum": 3, "checkpointing": "non_reentrant"}
        yield {"precision": p, "zero_to_zero": True}
        yield {"precision": p, "keep_outputs": True}
        yield {"precision": p, "layerwise": True}
    yield {"layerwise": True, "optimizer": "adamw_fused", "b": 4}
    yield {"precision": "bf16_mixed", "backward_in_autocast": True}
    yield {"precision": "bf16_mixed", "backward_in_autocast": True, "checkpointing": "non_reentrant"}
    for p in ("bf16", "bf16_mixed", "fp32"):
        for extra in (
            {},
            {"checkpointing": "non_reentrant"},
            {"lora_dropout": 0.1},
            {"dora": True},
            {"targets": "all-linear"},
        ):
            yield {"precision": p, "lora": 8, **extra}
    yield {"precision": "bf16_mixed", "lora": 8, "base": "fp32"}
    yield {"precision": "bf16", "lora": 8, "cast": False}
    for optimizer in OPTIMIZERS:
        yield {"optimizer": optimizer, "layers": 2, "steps": 4}
        if optimizer.startswith(("galore:", "po:Ga", "po:AP", "po:Fi", "po:Ad", "torch:", "bnb:Ad")):
            yield {"optimizer": optimizer, "layers": 2, "steps": 4, "precision": "fp32", "b": 1}
    yield {"optimizer": "ao:AdamW8bit", "layers": 2}
    yield {"optimizer": "ao:AdamW4bit", "layers": 2}
    yield {"optimizer": "ao:AdamWFp8", "layers": 2}


OPTIMIZERS = (
    "torch:Adafactor", "torch:Muon", "torch:Adam", "torch:NAdam", "torch:RAdam", "torch:Adamax", "torch:RMSprop", "torch:Adagrad",
    "galore:GaLoreAdamW", "galore:GaLoreAdafactor", "galore:GaLoreAdamW8bit",
    "po:GaLore", "po:APOLLO", "po:Fira", "po:Lion", "po:Adan", "po:CAME", "po:SOAP", "po:Lamb", "po:AdamMini",
    "po:Muon", "po:ScheduleFreeAdamW", "po:AdaFactor", "po:LOMO", "po:AdaLOMO", "po:SM3", "po:AdEMAMix", "schedulefree",
    "bnb:AdamW8bit", "bnb:Adam8bit", "bnb:Lion8bit", "bnb:PagedAdamW8bit", "bnb:PagedAdamW", "bnb:AdamW", "bnb:AdEMAMix8bit",
)  # fmt: skip


def older_specs() -> Iterator[dict[str, Any]]:
    """The steps of an older transformers, whose masks differ; and the published vramcalc runs, to the byte."""
    for p in PRECISIONS:
        for extra in (
            {},
            {"checkpointing": "non_reentrant"},
            {"attention": "eager"},
            {"model": "tiny-gqa"},
            {"b": 1, "s": 500},
        ):
            yield {"precision": p, **extra}
    for mask in ("ones", "padded", "packed"):
        yield {"mask": mask}
        yield {"mask": mask, "attention": "eager", "b": 1, "s": 500}
    for p in ("bf16", "bf16_mixed", "fp32"):
        for extra in ({}, {"checkpointing": "non_reentrant"}, {"dora": True}):
            yield {"precision": p, "lora": 8, **extra}
    loop = {"b": 1, "s": 2048, "zero_to_zero": True, "keep_outputs": True, "empty_cache": True}
    for model, p, extra in (
        ("llama-3.2-1b", "bf16", {}),
        ("llama-3.2-1b", "bf16", {"checkpointing": "non_reentrant"}),
        ("llama-3.2-1b", "bf16_mixed", {}),
        ("llama-3.2-1b", "bf16_mixed", {"checkpointing": "non_reentrant"}),
        ("llama-3.2-1b", "bf16", {"attention": "eager"}),
        ("llama-3.2-3b", "bf16", {"checkpointing": "non_reentrant"}),
        ("qwen2.5-1.5b", "bf16", {}),
        ("llama-3.2-1b", "bf16", {"lora": 8}),
        ("llama-3.2-1b", "bf16_mixed", {"lora": 8}),
        ("llama-3.2-1b", "bf16_mixed", {"lora": 8, "checkpointing": "non_reentrant"}),
        ("llama-3.2-3b", "bf16", {"lora": 8}),
        ("llama-3.1-8b", "bf16", {"lora": 8, "checkpointing": "non_reentrant"}),
        ("qwen2.5-1.5b", "bf16", {"lora": 8}),
    ):
        yield {"model": model, "precision": p, **loop, **extra}


def tied_specs() -> Iterator[dict[str, Any]]:
    """Tied embeddings, and each layer-wise, adapter and optimizer case again from an empty allocator."""
    for p in PRECISIONS[:4]:
        yield {"model": "tiny-tied", "precision": p}
        yield {"model": "tiny-tied", "precision": p, "checkpointing": "non_reentrant", "b": 1, "s": 500}
        yield {"precision": p, "layerwise": True, "b": 4}
    for p in ("bf16", "bf16_mixed", "fp32"):
        for extra in (
            {},
            {"checkpointing": "non_reentrant"},
            {"dora": True},
            {"base": "fp32"},
            {"targets": "all-linear", "lora_dropout": 0.1},
        ):
            yield {"precision": p, "lora": 8, **extra}
    for optimizer in OPTIMIZERS:
        yield {"optimizer": optimizer, "layers": 2, "steps": 4}


def published_specs() -> Iterator[dict[str, Any]]:
    """The published vramcalc runs in their loop: tied embeddings, fp32 base under autocast."""
    for given in older_specs():
        if given.get("s") == 2048:
            extra = {"base": "fp32"} if given.get("lora") and given["precision"] == "bf16_mixed" else {}
            yield {**given, **extra, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def expandable_specs() -> Iterator[dict[str, Any]]:
    """To be run with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."""
    for model, b, s in (
        ("tiny", 2, 256),
        ("tiny", 3, 1000),
        ("tiny", 1, 500),
        ("llama-60m", 16, 512),
        ("llama-130m", 5, 777),
        ("llama-350m", 4, 1024),
    ):
        for extra in (
            {},
            {"checkpointing": "non_reentrant"},
            {"optimizer": "adamw_fused"},
            {"precision": "bf16_mixed"},
            {"accum": 2},
        ):
            yield {"model": model, "b": b, "s": s, **extra}


def speed_specs() -> Iterator[dict[str, Any]]:
    """Larger steps with peaks and times, without a history."""
    for model, b, s in (
        ("llama-60m", 16, 512),
        ("llama-130m", 16, 512),
        ("llama-350m", 4, 1024),
        ("llama-1b", 2, 2048),
    ):
        for optimizer in ("none", "sgd_foreach", "adamw_for_loop", "adamw_foreach", "adamw_fused"):
            yield {"model": model, "b": b, "s": s, "optimizer": optimizer}
        for optimizer in (
            "bnb:AdamW8bit",
            "po:APOLLO",
            "galore:GaLoreAdamW",
            "po:Lion",
            "torch:Adafactor",
            "torch:Muon",
            "sgdm_foreach",
        ):
            if model in ("llama-350m", "llama-1b"):
                yield {"model": model, "b": b, "s": s, "optimizer": optimizer, "steps": 6}
        for p in ("fp32", "bf16_mixed", "fp16_mixed"):
            yield {"model": model, "b": b, "s": s, "precision": p}
        yield {"model": model, "b": b, "s": s, "checkpointing": "non_reentrant"}
        yield {"model": model, "b": b, "s": s, "checkpointing": "non_reentrant", "precision": "bf16_mixed"}
        yield {"model": model, "b": b, "s": s, "attention": "eager"}
        yield {"model": model, "b": 2 * b, "s": s}
        yield {"model": model, "b": 1, "s": s}
        yield {"model": model, "b": 1, "s": 4096}
        yield {"model": model, "b": 4 * b, "s": s, "checkpointing": "non_reentrant"}
        yield {"model": model, "b": 3, "s": 1000}
        yield {"model": model, "b": b, "s": s, "accum": 4}
        yield {"model": model, "b": b, "s": s, "clip": "default"}
        yield {"model": model, "b": b, "s": s, "lora": 16}
    for optimizer, b, extra in (
        ("sgd_foreach", 1, {}), ("sgd_foreach", 2, {}), ("sgd_foreach", 4, {"checkpointing": "non_reentrant"}),
        ("adamw_fused", 1, {"s": 1024}), ("adamw_foreach", 1, {"s": 256}), ("none", 1, {}), ("sgd_foreach", 8, {"s": 256}),
        ("bnb:AdamW8bit", 1, {}), ("adamw_fused", 4, {"s": 1024, "checkpointing": "non_reentrant"}), ("adamw_fused", 1, {"lora": 16}),
        ("adamw_fused", 1, {"layerwise": True}),
    ):  # fmt: skip
        yield {"model": "llama-7b", "b": b, "s": 2048, "optimizer": optimizer, "steps": 4, **extra}


def main() -> None:
    part, out, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    small = "--small" in sys.argv
    shard, shards = (int(x) for x in os.environ.get("SHARD", "0/1").split("/"))
    recorder = Recorder(out, seconds)
    if part in ("ops", "kernels"):
        import kernels
        import ops

        found = {"ops": ops, "kernels": kernels}[part].cases(small)
        for number, (spec, function) in enumerate(found):
            if number % shards == shard:
                recorder.case(spec, function, collect=False, events=part == "ops")
    elif part == "caps":
        import caps

        for number, spec in enumerate(caps.specs()):
            if small:
                spec |= {"s": 16, "layers": 1, "b": 1, "steps": 1}
            if number % shards == shard:
                recorder.case(spec, lambda run, spec=spec: caps.find_smallest_cap(spec, run), events=False)
    elif part == "variants":
        import variants

        for number, given in enumerate(variants.specs()):
            spec = {**BASE, **given, **({"s": 16, "layers": 2, "b": 1, "steps": 2} if small else {})}
            if number % shards == shard:
                recorder.case(spec, variants.train(spec))
    elif part == "capped":
        import caps

        for spec in caps.capped_specs():
            recorder.case(spec, lambda run, spec=spec: caps.train_capped(spec, run))
    elif part == "parallel":
        import parallel

        parallel.setup()
        for spec in parallel.specs():
            if small:
                spec |= {"s": 16, "layers": 2, "b": 1}
            recorder.case(spec, lambda run, spec=spec: parallel.train(spec, run))
    else:
        import steps

        specs = {
            "steps": step_specs,
            "older": older_specs,
            "speed": speed_specs,
            "tied": tied_specs,
            "published": published_specs,
            "expandable": expandable_specs,
        }[part]()
        if small:
            for model in steps.MODELS.values():
                model |= {"V": 512, "h": 64 if model["a"] <= 16 else 256, "i": 96}
                model.pop("d", None)
                if 64 % model["a"]:
                    model |= {"a": 8, "kv": 2}
        seen = set()
        for given in specs:
            spec = {**BASE, **({"steps": 8} if part == "speed" else {}), **given}
            key = repr(sorted(spec.items()))
            if key in seen:
                continue
            seen.add(key)
            if len(seen) % shards != shard:
                continue
            if small:
                spec |= {"s": min(spec["s"], 16), "layers": 1, "b": min(spec["b"], 2), "steps": 2, "rank": 16}
            recorder.case(spec, steps.train(spec), events=part not in ("speed",))
    print(
        part,
        "done",
        recorder.num_done,
        "failed",
        recorder.num_failed,
        "skipped",
        recorder.num_skipped,
        torch.__version__,
        flush=True,
    )


if __name__ == "__main__":
    main()
