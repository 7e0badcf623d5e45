"""How the page words what the API holds as numbers."""

from whatfits.estimator.units import format_bytes
from whatfits.web.answers import Estimate, Parallelism, Training

__all__ = [
    "word_batch_note",
    "word_bytes_interval",
    "word_optimizer_note",
    "word_placement",
    "word_placement_note",
    "word_rank",
    "word_speed_interval",
]

_USUAL_IMPLEMENTATION = "foreach"


def word_speed_interval(estimate: Estimate) -> str:
    """Tokens per second at the slow and the fast end of the step time's interval."""
    seconds = estimate.time.step_time_seconds
    tokens = estimate.time.tokens_per_second * seconds.median
    return f"{tokens / seconds.high:,.0f} to {tokens / seconds.low:,.0f}"


def word_bytes_interval(low_bytes: float, high_bytes: float) -> str:
    """Both ends, the unit once where it is the same: "69.13 to 72.13 GiB"."""
    low, high = format_bytes(low_bytes), format_bytes(high_bytes)
    number, unit = low.split(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def word_rank(rank: int | None) -> str:
    return "" if rank is None else str(rank)


def word_optimizer_note(training: Training) -> str:
    """What sets an optimizer's setting apart: an implementation other than the usual one, layer-wise updates."""
    implementation = training.optimizer.implementation
    notes = [] if implementation == _USUAL_IMPLEMENTATION else [implementation.replace("_", "-")]
    if training.layerwise_update:
        notes.append("layer-wise update")
    return ", ".join(notes)


def word_batch_note(training: Training) -> str:
    return f"{training.grad_accum_steps} accumulated" if training.grad_accum_steps > 1 else ""


def word_placement_note(axes: Parallelism) -> str:
    return "bucket views" if axes.gradient_as_bucket_view else ""


def word_placement(axes: Parallelism) -> str:
    """A placement in the words of the command line: "DDP x8", "FSDP x8", "DDP x2 of FSDP x4", "1 GPU"."""
    replicas, shards = axes.dp_replicate_degree, axes.dp_shard_degree
    sharded = f"FSDP x{shards}" if axes.zero_stage == 3 else f"ZeRO-{axes.zero_stage} x{shards}"
    words = []
    if replicas > 1:
        words.append(f"DDP x{replicas}" if shards == 1 else f"DDP x{replicas} of {sharded}")
    elif shards > 1:
        words.append(sharded)
    degrees = (("TP", axes.tp_degree), ("PP", axes.pp_degree), ("CP", axes.cp_degree))
    words += [f"{name} x{degree}" for name, degree in degrees if degree > 1]
    return ", ".join(words) or "1 GPU"
