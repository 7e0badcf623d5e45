"""The structure class of one Hugging Face config: where its model is traced, and what sizes may depend on.

Everything but batch and sequence lengths is a number there. Lengths on either side of an attention window are classes
of their own, since a mask is made above it alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from whatfits.estimator.catalog.rows import catalog_rows
from whatfits.estimator.profile import CONFIG_MULTIPLE, canonical_config, config_id
from whatfits.profiler.trace.classes import StructureClass, key_of
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.options import Dims, StepOptions

__all__ = ["are_multiples", "config_class", "other_lengths", "shipped_config_classes"]

_BATCHES = (2, 5, 3, 7, 4, 6)
_SHARES = (0.21, 0.9, 0.37, 0.6, 0.77, 0.13)
_TARGET_SHARES = (0.55, 0.3, 0.86, 0.17, 0.41, 0.71)
"""Where in its range each point's sequence length lies, a decoder's too."""
_HELD_OUT: tuple[tuple[int, float, float, int | None], ...] = (
    (8, 0.45, 0.63, 2),
    (3, 0.83, 0.34, 3),
    (9, 0.69, 0.22, None),
    (2, 0.3, 0.79, None),
)
"""Batch and lengths of the held-out points, and which of the depths each lies at; none for the config's own.

Lengths that are no multiple of 16 are expected to differ in nothing, and get every second."""
_MORE_HELD_OUT: tuple[tuple[int, float, float, int | None], ...] = (
    (11, 0.5, 0.5, None),
    (13, 0.5, 0.5, 2),
)
"""Two more for models without lengths, which have no others."""
_LONGEST_TRACED = 2048
_SEQUENTIAL = ("mamba", "mamba2")
"""Model types whose events are as many as there are tokens, or change with what a sequence lacks to whole chunks."""


def config_class(options: StepOptions, facts: ConfigFacts, dims: Dims) -> StructureClass:
    """The class that batch and sequence lengths of a config's model fall into."""
    low, high = _range(facts, dims["s"])
    eights = are_multiples(dims) or not _has_tokens(facts)
    one = dims["b"] == 1
    key = replace(
        key_of(options, micro_batch="one" if one else "many", kv_heads="any"),
        architecture=facts.architecture,
        config=config_id(options.config or options.factory),
        tied=facts.tied,
        sequence=("eights" if eights else "other") + (f"_above_{low}" if low else ""),
    )

    def point(batch: int, share: float, target_share: float) -> Dims:
        found = {"b": 1 if one else batch}
        found["s"] = _length(low, high, share, eights=eights) if _has_tokens(facts) else 1
        if facts.inputs == "tokens_and_targets":
            found["t"] = _length(low, high, target_share, eights=eights)
        return found

    depths = facts.depths or (facts.num_layers,)
    chosen = _HELD_OUT if eights else _HELD_OUT[1::2]
    if not _has_tokens(facts):
        chosen = (*chosen, *_MORE_HELD_OUT)
    held_out = tuple(
        {
            **point(batch, share, other),
            "L": facts.num_layers if which is None or not facts.depths else depths[which],
        }
        for batch, share, other, which in chosen
    )
    return StructureClass(
        key=key,
        options=options,
        points=tuple(map(point, _BATCHES, _SHARES, _TARGET_SHARES)),
        symbols=_lengths(facts),
        depths=depths,
        facts=facts,
        held_out=held_out,
    )


def shipped_config_classes() -> Iterator[StructureClass]:
    """Of each catalog model whose architecture has no classes: bf16, with and without checkpointing, up to the default length.

    But for Mamba, whose code in transformers steps through a sequence token by token where mamba-ssm is not installed,
    and Mamba-2, which pads sequences to whole chunks.
    """
    rows = [
        row for row in catalog_rows() if "facts" in row and row["config"]["model_type"] not in _SEQUENTIAL
    ]
    for (checkpointing, batch), row in product(product(("none", "full"), (2, 1)), rows):
        facts = ConfigFacts.from_json(row["facts"])
        if checkpointing != "none" and not facts.checkpoints:
            continue
        options = StepOptions(
            architecture=facts.architecture,
            config=canonical_config(row["config"]),
            checkpointing=checkpointing,
        )
        length = min(_LONGEST_TRACED, facts.longest or _LONGEST_TRACED) if _has_tokens(facts) else 1
        yield config_class(options, facts, {"b": batch, "s": length - length % CONFIG_MULTIPLE or 1})


def other_lengths(structure: StructureClass) -> StructureClass | None:
    """The class of the same range of lengths that are, or are not, multiples of 16; none where there are no lengths."""
    facts, point = structure.facts, structure.points[0]
    assert facts is not None
    if not _has_tokens(facts):
        return None
    low, high = _range(facts, point["s"])
    length = _length(low, high, _SHARES[0], eights=point["s"] % CONFIG_MULTIPLE != 0)
    return config_class(structure.options, facts, {"b": point["b"], "s": length})


def are_multiples(dims: Dims) -> bool:
    """Whether all lengths, a decoder's too, are multiples of 16."""
    return not any(dims[length] % CONFIG_MULTIPLE for length in ("s", "t") if length in dims)


def _has_tokens(facts: ConfigFacts) -> bool:
    return facts.inputs != "images"


def _range(facts: ConfigFacts, seq_len: int) -> tuple[int, int]:
    """Lengths (low, high] that behave as this one does, at most some of them."""
    low = max((w for w in facts.windows if w < seq_len), default=0)
    high = min((w for w in facts.windows if w >= seq_len), default=low + _LONGEST_TRACED)
    longest = facts.longest or high
    return low, max(min(high, longest, low + _LONGEST_TRACED), low + 1)


def _length(low: int, high: int, share: float, *, eights: bool) -> int:
    """A length in a range, a multiple of 16 or not."""
    length = low + max(int((high - low) * share), 1)
    whole = -(-length // CONFIG_MULTIPLE) * CONFIG_MULTIPLE
    whole = whole if whole <= high else whole - CONFIG_MULTIPLE
    if eights:
        return whole
    return whole - 3 if whole - 3 > low else min(low + 3, high)


def _lengths(facts: ConfigFacts) -> tuple[str, ...]:
    """Symbols of lengths: plain ones, then those rounded up as kernels and models do."""
    if not _has_tokens(facts):
        return ()
    plain = ("s", "t") if facts.inputs == "tokens_and_targets" else ("s",)
    multiples = (8, 16, 32, 128, *facts.chunks)
    padded = (f"padded(1 {x};{multiple};1)" for x in plain for multiple in multiples)
    chunks = (f"chunks(1 {x};{chunk};{more})" for x in plain for chunk in facts.chunks for more in (0, 1))
    return (*plain, *padded, *chunks)
