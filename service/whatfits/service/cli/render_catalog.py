"""The catalog as tables in a terminal."""

from collections.abc import Iterable

from rich.text import Text

from whatfits.estimator.specs import GpuSpec, ModelSpec
from whatfits.estimator.units import GIB, TERA, format_count
from whatfits.service.api.schemas import OptimizerEntry
from whatfits.service.cli.output import build_table, print_rendered

_MODEL_NUMBERS = ("parameters", "layers", "hidden", "heads", "kv heads", "vocabulary", "max tokens")
_GPU_NUMBERS = ("memory GiB", "GB/s", "bf16 TFLOPS")
_MEMORY_NOTE = (
    "memory: what the driver reports; ~ is an estimate, - is unknown (plans on that GPU are refused)"
)


def render_models(rows: Iterable[ModelSpec]) -> None:
    """Print a line a model: its size and shape, and the names it answers to."""
    table = build_table("model", *_MODEL_NUMBERS, "also known as", right=_MODEL_NUMBERS)
    for model in rows:
        table.add_row(
            model.name,
            format_count(model.num_parameters),
            str(model.num_layers),
            str(model.hidden_size),
            str(model.num_attention_heads),
            str(model.num_key_value_heads),
            str(model.vocab_size),
            str(model.max_position_embeddings),
            Text(", ".join(model.aliases), style="dim"),
        )
    print_rendered(table)


def render_gpus(rows: Iterable[GpuSpec]) -> None:
    """Print a line a GPU: memory, bandwidth, peak, and the names it answers to."""
    table = build_table("gpu", *_GPU_NUMBERS, "also known as", right=_GPU_NUMBERS)
    for gpu in rows:
        peak = gpu.peak_flops_per_second.get("bf16")
        table.add_row(
            gpu.id,
            _format_memory(gpu),
            f"{gpu.memory_bandwidth_bytes_per_second / 1e9:,.0f}",
            "-" if peak is None else f"{peak / TERA:,.0f}",
            Text(", ".join((*gpu.aliases, *gpu.default_for)), style="dim"),
        )
    print_rendered(table, "", _MEMORY_NOTE)


def render_optimizers(rows: Iterable[OptimizerEntry]) -> None:
    """Print a line an optimizer: whether it has a rank, and what it does."""
    table = build_table("optimizer", "title", "rank", "layer-wise", "what it does")
    for entry in rows:
        has_rank = "yes" if entry.has_rank else "-"
        layerwise = "yes" if entry.layerwise_possible else "-"
        table.add_row(entry.name, entry.title, has_rank, layerwise, entry.summary)
    print_rendered(table)


def _format_memory(gpu: GpuSpec) -> str:
    if gpu.total_bytes is None:
        return "-"
    return f"{'~' if gpu.total_bytes_is_estimate else ''}{gpu.total_bytes / GIB:.2f}"
