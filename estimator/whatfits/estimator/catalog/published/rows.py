"""Figures that others measured and printed, one row each, with who measured what, how and with which libraries."""

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from whatfits.estimator.specs.base import PositiveInt, Spec
from whatfits.estimator.units import GB, GIB, MIB

__all__ = [
    "MEMORY_QUANTITIES",
    "Loop",
    "PublishedModel",
    "PublishedRow",
    "Quantity",
    "Reading",
    "Tool",
    "load_loops",
    "load_published",
]

_PACKAGE = "whatfits.estimator.catalog.published"
_FILES = ("memory.jsonl", "throughput.jsonl")


class Tool(StrEnum):
    """What a figure was read from."""

    MAX_MEMORY_ALLOCATED = "max_memory_allocated"
    MAX_MEMORY_RESERVED = "max_memory_reserved"
    NVML = "nvml"
    WALL_CLOCK = "wall_clock"
    CALCULATED = "calculated"
    """Worked out by its authors, not measured."""
    UNKNOWN = "unknown"
    """The source does not say."""


class Quantity(StrEnum):
    """What a figure is of."""

    PEAK_ALLOCATED = "peak_allocated"
    PEAK_RESERVED = "peak_reserved"
    DEVICE_USED = "device_used"
    PEAK_MEMORY = "peak_memory"
    """A peak whose kind the source does not say."""
    WEIGHTS_AND_OPTIMIZER_STATES = "weights_and_optimizer_states"
    LARGEST_SEQ_LEN = "largest_seq_len"
    STEP_TIME = "step_time"
    OPTIMIZER_STEP_TIME = "optimizer_step_time"
    BACKWARD_TIME = "backward_time"
    TOKENS_PER_SECOND_PER_GPU = "tokens_per_second_per_gpu"
    SAMPLES_PER_SECOND = "samples_per_second"
    STEPS_PER_SECOND = "steps_per_second"
    FLOPS_PER_SECOND_PER_GPU = "flops_per_second_per_gpu"


MEMORY_QUANTITIES = frozenset(
    {Quantity.PEAK_ALLOCATED, Quantity.PEAK_RESERVED, Quantity.DEVICE_USED, Quantity.PEAK_MEMORY}
)
"""Quantities that are a peak of memory."""

_BYTES_PER_UNIT = {"GB": GB, "GiB": GIB, "MiB": MIB}


class Reading(Spec):
    """One printed figure."""

    quantity: Quantity
    """What it is of."""
    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The number as printed."""
    unit: Literal[
        "GB", "GiB", "MiB", "G as printed", "M as printed", "s", "1/s", "token/s", "token", "TFLOP/s"
    ]
    """GB is decimal; `as printed` where the source does not say whether it is decimal."""
    tool: Tool
    """What it was read from."""

    @property
    def nbytes(self) -> float | None:
        """The figure in bytes; None where the unit is none of bytes, or not stated."""
        scale = _BYTES_PER_UNIT.get(self.unit)
        return None if scale is None else self.value * scale


class PublishedModel(Spec):
    """The model of a row, as far as it is named."""

    name: str
    """As printed."""
    architecture: str | None = None
    """The class that implements it; None where the source leaves it open."""
    catalog: str | None = None
    """The catalog model with the same dims."""
    num_layers: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    tie_embeddings: bool = False


class PublishedRow(Spec):
    """One published run. Fields hold the name a RunSpec has for something, the source's words where it has none."""

    id: str
    source: str
    """Repository@commit:path, package==version or paper with its table."""
    model: PublishedModel
    method: str | None = None
    gpu: str | None = None
    """As printed."""
    gpu_catalog: str | None = None
    """The catalog GPU, where the source leaves no choice."""
    num_gpus: PositiveInt | None = None
    parallelism: dict[str, str | int] = Field(default_factory=dict)
    micro_batch_size: PositiveInt | None = None
    seq_len: PositiveInt | None = None
    grad_accum_steps: PositiveInt | None = None
    precision: str | None = None
    optimizer: str | None = None
    implementation: str | None = None
    rank: PositiveInt | None = None
    """Rank of the adapter or of the projection."""
    adapter_targets: tuple[str, ...] = ()
    checkpointing: str | None = None
    attention: str | None = None
    compile: bool = False
    stack: dict[str, str] = Field(default_factory=dict)
    """Library versions, where the source gives them."""
    loop: str | None = None
    """Whose training loop ran: a name of loops.json where its conventions are written down there."""
    measured: tuple[Reading, ...]
    out_of_memory: bool = False
    notes: str = ""


class Loop(Spec):
    """The conventions of a training loop that change bytes."""

    name: str
    source: str
    summary: str
    one_input_tensor_kept: bool
    """Token ids that serve as labels too, made once and kept from step to step."""
    outputs_kept_until: Literal["forward_end", "backward_end", "step_end"]
    """How long the model's outputs, logits above all, are held."""
    set_grads_to_none: bool
    """Whether gradients are dropped after the step rather than filled with zeros."""
    empty_cache_before_step: bool
    """Whether `torch.cuda.empty_cache` runs before each step."""
    sdpa_kernels: tuple[str, ...]
    """Kernels that scaled_dot_product_attention may choose, in order of preference."""
    read: str
    """Which counter of which steps is the figure."""


@lru_cache(maxsize=1)
def load_published() -> Mapping[str, PublishedRow]:
    """All rows by id, in the order of the data files."""
    rows = [
        PublishedRow.model_validate_json(line)
        for name in _FILES
        for line in files(_PACKAGE).joinpath(name).read_text(encoding="utf-8").splitlines()
    ]
    by_id = {row.id: row for row in rows}
    if len(by_id) != len(rows):
        raise AssertionError("two published rows share an id")
    return MappingProxyType(by_id)


@lru_cache(maxsize=1)
def load_loops() -> Mapping[str, Loop]:
    """The loops whose conventions are written down, by name."""
    data = json.loads(files(_PACKAGE).joinpath("loops.json").read_text(encoding="utf-8"))
    return MappingProxyType({loop["name"]: Loop.model_validate(loop) for loop in data["loops"]})
