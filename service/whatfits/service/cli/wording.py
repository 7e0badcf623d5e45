"""How the terminal words what the specs hold as numbers."""

from whatfits.estimator.specs import (
    Attention,
    DeviceBytes,
    Loss,
    Method,
    OptimizerSpec,
    ParallelismSpec,
    TimeEstimate,
    TrainingSpec,
    Verdict,
)
from whatfits.estimator.units import GIB

VERDICT_STYLES = {Verdict.YES: "bold green", Verdict.UNCERTAIN: "bold yellow", Verdict.NO: "bold red"}


def word_optimizer(optimizer: OptimizerSpec) -> str:
    """Name an optimizer with its rank: "apollo rank 256"."""
    return optimizer.name if optimizer.rank is None else f"{optimizer.name} rank {optimizer.rank}"


def word_training(training: TrainingSpec) -> str:
    """Name precision and what is not the default of method, attention, loss and loop: "bf16, lora rank 8, clipped"."""
    rank = f" rank {training.adapter.rank}" if training.adapter else ""
    words = (
        str(training.precision),
        "" if training.method is Method.FULL else f"{training.method}{rank}",
        str(training.attention) if training.attention is Attention.EAGER else "",
        f"dropout {training.dropout}" if training.dropout else "",
        "packed" if training.packed_sequences else "",
        "" if training.loss is Loss.STANDARD else f"{training.loss} loss",
        "clipped" if training.gradient_clipping else "",
    )
    return ", ".join(filter(None, words))


def word_placement(parallelism: ParallelismSpec) -> str:
    """Name a placement: "1 GPU", "DDP x8", "FSDP x8", "DDP x2 of FSDP x4", with "TP x2" and "PP x2" after it."""
    replicas, shards = parallelism.dp_replicate_degree, parallelism.dp_shard_degree
    sharded = f"FSDP x{shards}" if parallelism.zero_stage == 3 else f"ZeRO-{parallelism.zero_stage} x{shards}"
    parts = []
    if replicas > 1:
        parts.append(f"DDP x{replicas}" if shards == 1 else f"DDP x{replicas} of {sharded}")
    elif shards > 1:
        parts.append(sharded)
    for name, degree in (
        ("TP", parallelism.tp_degree),
        ("PP", parallelism.pp_degree),
        ("CP", parallelism.cp_degree),
    ):
        if degree > 1:
            parts.append(f"{name} x{degree}")
    return ", ".join(parts) or "1 GPU"


def word_interval(device: DeviceBytes) -> str:
    """Word device memory in GiB with its 90% interval: "61.2 (59.8-63.0)"."""
    return f"{device.median / GIB:.1f} ({device.low / GIB:.1f}-{device.high / GIB:.1f})"


def word_speed(time: TimeEstimate | None) -> str:
    """Word tokens per second of all GPUs with the 90% interval of the step time: "12,300 (8,100-16,900)"."""
    if time is None:
        return "not modelled"
    seconds = time.step_time_seconds
    tokens = time.tokens_per_second * seconds.median
    return f"{time.tokens_per_second:,.0f} ({tokens / seconds.high:,.0f}-{tokens / seconds.low:,.0f})"
