"""The catalog as tables in a terminal."""

from collections.abc import Iterable

from rich.text import Text

from whatfits.estimator.catalog.evidence import QualityRow
from whatfits.estimator.specs import GpuSpec, ModelSpec
from whatfits.estimator.units import GIB, TERA, format_count
from whatfits.service.api.schemas import OptimizerEntry
from whatfits.service.cli.output import build_table, print_rendered

_MODEL_NUMBERS = ("parameters", "layers", "hidden", "heads", "kv heads", "vocabulary", "max tokens")
_GPU_NUMBERS = ("memory GiB", "GB/s", "bf16 TFLOPS")
_COSTS = ("B/param", "step GiB")
_COST_NOTE = (
    "B/param: bytes of state a parameter of LLaMA-7B in bf16, whatfits' own code where it has any; step: temporaries at their peak, "
    "refresh steps included; --details says more"
)
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
    """Print a line an optimizer: what it costs on LLaMA-7B, whether it has a rank, and what it does."""
    table = build_table("optimizer", "rank", "layer-wise", *_COSTS, "what it does", right=_COSTS)
    for entry in rows:
        has_rank = "yes" if entry.has_rank else "-"
        layerwise = "yes" if entry.layerwise_possible else "-"
        cost = entry.at_7b[-1]
        per_parameter = f"{cost.state_bytes_per_parameter:.2f}"
        step = f"{max(cost.step_bytes, cost.refresh_bytes) / GIB:.2f}"
        table.add_row(entry.name, has_rank, layerwise, per_parameter, step, entry.summary)
    print_rendered(table, "", _COST_NOTE)


def render_optimizer_details(rows: Iterable[OptimizerEntry]) -> None:
    """Print a paragraph an optimizer: everything but the JSON's field names."""
    for entry in rows:
        print_rendered(
            Text(f"{entry.name}: {entry.title}", style="bold"), *map(Text, describe_lines(entry)), ""
        )


def describe_lines(entry: OptimizerEntry) -> list[str]:
    """What a person choosing an optimizer should know, a fact a line."""
    lines = [f"  {entry.summary}", f"  paper: {entry.paper}", f"  modelled: {entry.source}"]
    for cost in entry.at_7b:
        form = "whatfits' own code" if cost.implementation == "whatfits" else "as published"
        lines.append(
            f"  LLaMA-7B, bf16, {form}: {cost.state_bytes_per_parameter:.3f} bytes of state a parameter, "
            f"{cost.step_bytes / GIB:.3f} GiB of temporaries in a step, {cost.refresh_bytes / GIB:.3f} in a refresh"
        )
    if entry.default_rank:
        lines.append(f"  default rank: {entry.default_rank}")
    if entry.constraints:
        lines.append(f"  constraints: {'; '.join(entry.constraints)}")
    lines.append(f"  Hugging Face Trainer: {entry.trainer_name or 'no name there'}")
    lines.extend(_quality_lines(entry.quality))
    return lines


def _quality_lines(rows: Iterable[QualityRow]) -> list[str]:
    return [
        f"  {row.task}, {row.model}{f', rank {row.rank}' if row.rank else ''}: {row.metric} {row.value:g} beside "
        f"{row.adamw_value:g} of AdamW, ratio {row.ratio_to_adamw:.3f} "
        f"({'lower' if row.lower_is_better else 'higher'} is better; {row.source}, {row.table})"
        for row in rows
    ]


def _format_memory(gpu: GpuSpec) -> str:
    if gpu.total_bytes is None:
        return "-"
    return f"{'~' if gpu.total_bytes_is_estimate else ''}{gpu.total_bytes / GIB:.2f}"
