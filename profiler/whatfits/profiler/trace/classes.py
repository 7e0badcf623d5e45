"""The LLaMA structure classes and the points at which each is traced.

Dims are small, odd and unrelated, so that a size has one explanation. Within a class every trace has the same
tokens; what separates classes: micro-batch 1, one / grouped / full key-value heads, tied embeddings, checkpointing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from whatfits.estimator.profile import ProfileKey
from whatfits.profiler.trace.options import Dims, StepOptions

__all__ = ["StructureClass", "llama_classes"]

_POINTS: tuple[tuple[int, int, int, int, int, int, int, int], ...] = (
    # b, s, h / a, i, a, groups (a / k), d, V
    (2, 130, 60, 298, 6, 3, 24, 701),
    (3, 77, 24, 172, 10, 2, 40, 313),
    (5, 150, 33, 97, 4, 2, 16, 97),
    (2, 260, 11, 121, 12, 4, 56, 205),
    (3, 390, 23, 331, 8, 2, 72, 411),
    (4, 65, 31, 203, 6, 2, 96, 157),
    (7, 33, 27, 111, 9, 3, 8, 523),
    (2, 201, 13, 259, 14, 2, 136, 149),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureClass:
    """One class: its name, how to build its model, where to trace it and the symbols its sizes depend on."""

    key: ProfileKey
    options: StepOptions
    points: tuple[Dims, ...]
    symbols: tuple[str, ...]


def llama_classes() -> Iterator[StructureClass]:
    """All classes shipped for `LlamaForCausalLM` in pure bf16 with the flash kernel and the standard loss."""
    for micro_batch, kv_heads, tied, checkpointing in product(
        ("one", "many"), ("one", "grouped", "full"), (False, True), ("none", "full")
    ):
        key = ProfileKey(
            architecture="LlamaForCausalLM",
            precision="bf16",
            attention="sdpa",
            checkpointing=checkpointing,
            loss="standard",
            micro_batch=micro_batch,
            kv_heads=kv_heads,
            tied=tied,
        )
        dropped = {"b"} if micro_batch == "one" else set()
        if kv_heads != "grouped":
            dropped.add("k")
        yield StructureClass(
            key=key,
            options=StepOptions(tie_embeddings=tied, checkpointing=checkpointing),
            points=tuple(_point(row, micro_batch, kv_heads) for row in _POINTS),
            symbols=tuple(x for x in "bshiakdV" if x not in dropped),
        )


def _point(row: tuple[int, ...], micro_batch: str, kv_heads: str) -> Dims:
    b, s, width, i, a, groups, d, vocab = row
    k = {"one": 1, "grouped": a // groups, "full": a}[kv_heads]
    return {
        "b": 1 if micro_batch == "one" else b,
        "s": s,
        "h": width * a,
        "i": i,
        "a": a,
        "k": k,
        "d": d,
        "V": vocab,
    }
