"""Structure classes and the points at which each is traced.

Dims are small, odd and unrelated, so that a size has one explanation. Within a class every trace has the same
tokens; what separates classes: the options of the step, micro-batch 1, one / grouped / full key-value heads, and
sequences whose length is no multiple of 8, for which some kernels have a mask padded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from whatfits.estimator.profile import ProfileKey
from whatfits.estimator.profile.expressions import CLASS_SYMBOLS
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.options import (
    BASE_LAYERS,
    NUM_DEPTHS,
    AdapterOptions,
    Dims,
    StepOptions,
    checkpointing_period,
)
from whatfits.profiler.trace.sizes import ConfigSizeFitter, Fitter, SizeFitter

__all__ = [
    "StructureClass",
    "class_at",
    "key_of",
    "shipped_structures",
    "structure_class",
    "with_sequence",
]

_POINTS: tuple[tuple[int, int, int, int, int, int, int, int, int, int], ...] = (
    # b, s (a multiple of 8, another), h / a, i, a, groups (a / k), d, V, r
    (2, 136, 130, 60, 298, 6, 3, 24, 701, 5),
    (3, 72, 77, 24, 172, 10, 2, 40, 313, 3),
    (5, 3152, 3150, 33, 97, 4, 2, 16, 97, 7),
    (2, 4600, 4598, 11, 121, 12, 4, 56, 205, 2),
    (3, 392, 390, 23, 331, 8, 2, 72, 411, 11),
    (4, 16392, 16391, 31, 203, 6, 2, 96, 15013, 9),
    (7, 40, 33, 27, 111, 9, 3, 8, 523, 4),
    (2, 200, 201, 13, 259, 14, 2, 136, 149, 6),
)
_HELD_OUT = ((7, 3, 640, 637, 2048), (9, 4, 776, 777, 1376))
"""Depth, batch, sequence (as above) and intermediate size of the points each fresh profile must reproduce."""
FLASH_FIRST = ("flash", "efficient", "math")
"""The order in which SDPA tries its kernels on most devices."""
CUDNN_FIRST = ("cudnn", *FLASH_FIRST)
"""The order on Hopper and data-center Blackwell."""
KERNEL_ORDERS = {"flash": FLASH_FIRST, "cudnn": CUDNN_FIRST}
"""Either order by the kernel it begins with, as a profile key names it."""
_PRECISIONS = {
    "LlamaForCausalLM": ("bf16", "fp32", "bf16_mixed", "fp16_mixed"),
    "Qwen2ForCausalLM": ("bf16", "bf16_mixed"),
}
_ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
_ADAPTED = (
    ("bf16", AdapterOptions(targets=_ATTENTION)),
    ("bf16_mixed", AdapterOptions(targets=_ATTENTION)),
    ("bf16", AdapterOptions(targets=(*_ATTENTION, "gate_proj", "up_proj", "down_proj"))),
    ("bf16", AdapterOptions(targets=(*_ATTENTION, "gate_proj", "up_proj", "down_proj"), quantized=True)),
)
"""Precision and adapters that ship, of LLaMA with more than one key and value head: those a run has that names no targets,
and LoRA on all linear layers."""
_CHECKPOINTINGS = ("none", "full")
_MICRO_BATCHES = ("one", "many")
_KV_HEADS = ("one", "grouped", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureClass:
    """One class: its name, how to build its model, where to trace it and the symbols its sizes depend on."""

    key: ProfileKey
    options: StepOptions
    points: tuple[Dims, ...]
    symbols: tuple[str, ...]
    depths: tuple[int, ...]
    """Layers of the traces: four, a period apart, of which sizes are fitted at the second; or a single one."""
    facts: ConfigFacts | None = None
    """Of the config whose model alone the class is about; none for a class of an architecture."""
    held_out: tuple[Dims, ...] = ()
    """Points no size is fitted at."""

    def make_fitter(self) -> Fitter:
        """What finds the sizes' expressions at the points."""
        if self.options.config or self.options.factory:
            return ConfigSizeFitter(self.points, self.symbols)
        return SizeFitter(self.points, self.symbols)


def structure_class(
    options: StepOptions, *, micro_batch: str, kv_heads: str, sequence: str = "eights"
) -> StructureClass:
    """The class of some options.

    Args:
        options: of the step.
        micro_batch: one | many.
        kv_heads: one | grouped | full.
        sequence: eights | other, for lengths that are a multiple of 8 or not.
    """
    key = key_of(options, micro_batch=micro_batch, kv_heads=kv_heads, sequence=sequence)
    dropped = {"b"} if micro_batch == "one" else set()
    if kv_heads != "grouped":
        dropped.add("k")
    if options.adapter is None:
        dropped.add("r")
    period = checkpointing_period(options.checkpointing)
    first = -(-BASE_LAYERS // period) * period
    own = [*CLASS_SYMBOLS.get(options.loss, ()), *CLASS_SYMBOLS.get(key.adapter.partition(":")[0], ())]
    return StructureClass(
        key=key,
        options=options,
        points=tuple(_point(row, micro_batch, kv_heads, sequence) for row in _POINTS),
        symbols=tuple(x for x in (*"bshiakdVr", *own) if x not in dropped),
        depths=tuple(first + j * period for j in range(NUM_DEPTHS)),
        held_out=_held_out(options, micro_batch, kv_heads, sequence),
    )


def key_of(options: StepOptions, *, micro_batch: str, kv_heads: str, sequence: str = "eights") -> ProfileKey:
    """Name of a class."""
    return ProfileKey(
        architecture=options.architecture,
        precision=options.precision,
        attention=options.attention,
        checkpointing=options.checkpointing,
        loss=options.loss,
        micro_batch=micro_batch,
        kv_heads=kv_heads,
        tied=options.tie_embeddings,
        mask=options.mask,
        dropout=options.dropout > 0,
        adapter=_name_adapter(options.adapter),
        sequence=sequence,
        first_kernel=_first_kernel(options),
    )


def class_at(options: StepOptions, dims: Dims) -> StructureClass:
    """The class that some dims fall into."""
    kv_heads = "full" if dims["k"] == dims["a"] else "one" if dims["k"] == 1 else "grouped"
    return structure_class(
        options,
        micro_batch="one" if dims["b"] == 1 else "many",
        kv_heads=kv_heads,
        sequence="other" if dims["s"] % 8 else "eights",
    )


def with_sequence(structure: StructureClass, sequence: str) -> StructureClass:
    """The same class for sequences of a multiple of 8 (`eights`) or of other lengths (`other`)."""
    key = structure.key
    return structure_class(
        structure.options, micro_batch=key.micro_batch, kv_heads=key.kv_heads, sequence=sequence
    )


def shipped_structures() -> Iterator[StructureClass]:
    """All classes that ship for each stack."""
    for options, kv_heads in (*_full_training(), *_adapter_training()):
        for micro_batch, tied, checkpointing in product(_MICRO_BATCHES, (False, True), _CHECKPOINTINGS):
            chosen = replace(options, tie_embeddings=tied, checkpointing=checkpointing)
            yield structure_class(chosen, micro_batch=micro_batch, kv_heads=kv_heads)


def _full_training() -> Iterator[tuple[StepOptions, str]]:
    for (architecture, precision, attention, kernels), kv_heads in product(_computations(), _KV_HEADS):
        options = StepOptions(
            architecture=architecture, precision=precision, attention=attention, kernels=kernels
        )
        yield options, kv_heads


def _adapter_training() -> Iterator[tuple[StepOptions, str]]:
    for (precision, adapter), kernels, kv_heads in product(
        _ADAPTED, (FLASH_FIRST, CUDNN_FIRST), ("grouped", "full")
    ):
        yield StepOptions(precision=precision, adapter=adapter, kernels=kernels), kv_heads


def _computations() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Architecture, precision, attention and kernels; cuDNN takes no fp32, and what is not SDPA has no kernels."""
    for architecture, precisions in _PRECISIONS.items():
        for precision in precisions:
            yield architecture, precision, "sdpa", FLASH_FIRST
            if precision != "fp32":
                yield architecture, precision, "sdpa", CUDNN_FIRST
    for precision in _PRECISIONS["LlamaForCausalLM"]:
        yield "LlamaForCausalLM", precision, "eager", FLASH_FIRST


def _held_out(options: StepOptions, micro_batch: str, kv_heads: str, sequence: str) -> tuple[Dims, ...]:
    k = {"one": 1, "grouped": 4, "full": 8}[kv_heads]
    period = checkpointing_period(options.checkpointing)
    return tuple(
        {
            "L": -(-L // period) * period,
            "b": 1 if micro_batch == "one" else b,
            "s": eights if sequence == "eights" else other,
            "h": 512,
            "i": i,
            "a": 8,
            "k": k,
            "d": 64,
            "V": 32000,
            "r": 16,
        }
        for L, b, eights, other, i in _HELD_OUT
    )


def _first_kernel(options: StepOptions) -> str:
    """What SDPA tries first: cuDNN only where asked first, and not in fp32, which it does not take."""
    asks = options.attention == "sdpa" and options.kernels[:1] == CUDNN_FIRST[:1]
    return "cudnn" if asks and options.precision != "fp32" else "flash"


def _name_adapter(adapter: AdapterOptions | None) -> str:
    """Method and targets, such as `lora:k_proj,q_proj`."""
    if adapter is None:
        return "none"
    method = "qlora" if adapter.quantized else "dora" if adapter.dora else "lora"
    return f"{method}:{','.join(sorted(adapter.targets))}"


def _point(row: tuple[int, ...], micro_batch: str, kv_heads: str, sequence: str) -> Dims:
    b, eights, other, width, i, a, groups, d, vocab, rank = row
    k = {"one": 1, "grouped": a // groups, "full": a}[kv_heads]
    return {
        "b": 1 if micro_batch == "one" else b,
        "s": eights if sequence == "eights" else other,
        "h": width * a,
        "i": i,
        "a": a,
        "k": k,
        "d": d,
        "V": vocab,
        "r": rank,
    }
