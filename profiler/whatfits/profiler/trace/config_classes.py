"""The structure class of one Hugging Face config: where its model is traced, and what sizes may depend on.

Everything but batch and sequence lengths is a number there. Lengths on either side of an attention window are classes
of their own, since a mask is made above it alone; so are those on either side of a chunk, and whole chunks.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from whatfits.estimator.catalog.rows import catalog_rows
from whatfits.estimator.profile import CONFIG_MULTIPLE, canonical_config, config_id, kind_of_lengths
from whatfits.profiler.trace.classes import StructureClass, key_of
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.options import Dims, StepOptions

__all__ = ["classes_of_lengths", "config_class", "sequence_of", "shipped_config_classes"]

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
_REMAINDERS = (13, 6, 11, 1, 9, 4, 15, 2)
"""Of other lengths divided by 16, wherever they are to be had: points by turns, then those held out. Both sides of 8, so
that what is padded to 8 and what is padded to 16 are told apart."""
_REMAINDERS_IN_CHUNKS = (13, 0, 8, 6, 0, 8, 11, 8)
"""The same of lengths that fill no chunk, of 16 and of 8 or not."""
_MORE_HELD_OUT: tuple[tuple[int, float, float, int | None], ...] = (
    (11, 0.5, 0.5, None),
    (13, 0.5, 0.5, 2),
)
"""Two more for models without lengths, which have no others."""
_LONGEST_TRACED = 2048
_KINDS = ("eights", "odd_eights", "other")
_SEQUENTIAL = ("mamba", "mamba2")
"""Model types whose events are as many as there are tokens, or change with what a sequence lacks to whole chunks."""


def config_class(options: StepOptions, facts: ConfigFacts, dims: Dims) -> StructureClass:
    """The class that batch and sequence lengths of a config's model fall into."""
    one = dims["b"] == 1
    key = replace(
        key_of(options, micro_batch="one" if one else "many", kv_heads="any"),
        architecture=facts.architecture,
        config=config_id(options.config or options.factory),
        tied=facts.tied,
        sequence=sequence_of(dims, facts),
    )

    def point(number: int, batch: int, *shares: float) -> Dims:
        found = {"b": 1 if one else batch, "s": 1}
        if _has_tokens(facts):
            lengths = ("s", "t") if facts.inputs == "tokens_and_targets" else ("s",)
            for turn, (x, share) in enumerate(zip(lengths, shares, strict=False)):
                found[x] = _length(facts, dims["s"], dims.get(x, dims["s"]), share, number + 3 * turn)
        return found

    depths = facts.depths or (facts.num_layers,)
    chosen = _HELD_OUT if _kind_of(dims, facts) == "eights" else _HELD_OUT[1::2]
    if not _has_tokens(facts):
        chosen = (*chosen, *_MORE_HELD_OUT)
    held_out = tuple(
        {
            **point(number, batch, *shares),
            "L": facts.num_layers if which is None or not facts.depths else depths[which],
        }
        for number, (batch, *shares, which) in enumerate(chosen, len(_BATCHES))
    )
    return StructureClass(
        key=key,
        options=options,
        points=tuple(map(point, range(len(_BATCHES)), _BATCHES, _SHARES, _TARGET_SHARES)),
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


def classes_of_lengths(structure: StructureClass) -> tuple[StructureClass, ...]:
    """The classes of the same range of lengths of each kind, multiples of 16 first; a mixed kind is by itself."""
    facts, point = structure.facts, structure.points[0]
    assert facts is not None
    low, high = _range(facts, point["s"])
    found = []
    for kind in _KINDS if _has_tokens(facts) and _kind_of(point, facts) in _KINDS else ():
        length = next(
            (n for n in range(low + 1, high + 1) if kind_of_lengths((n,), facts.chunks) == kind), None
        )
        if length is not None:
            found.append(config_class(structure.options, facts, {"b": point["b"], "s": length}))
    return tuple(found) or (structure,)


def sequence_of(dims: Dims, facts: ConfigFacts) -> str:
    """What a class is called by its lengths: their kind, and the largest window they lie above."""
    low, _ = _range(facts, dims["s"])
    return _kind_of(dims, facts) + (f"_above_{low}" if low else "")


def _kind_of(dims: Dims, facts: ConfigFacts) -> str:
    """Class of all lengths, a decoder's too."""
    if not _has_tokens(facts):
        return "eights"
    return kind_of_lengths([dims[length] for length in ("s", "t") if length in dims], facts.chunks)


def _has_tokens(facts: ConfigFacts) -> bool:
    return facts.inputs != "images"


def _range(facts: ConfigFacts, seq_len: int) -> tuple[int, int]:
    """Lengths (low, high] that behave as this one does, at most some of them."""
    low = max((w for w in facts.windows if w < seq_len), default=0)
    high = min((w for w in facts.windows if w >= seq_len), default=low + _LONGEST_TRACED)
    longest = facts.longest or high
    return low, max(min(high, longest, low + _LONGEST_TRACED), low + 1)


def _length(facts: ConfigFacts, seq_len: int, like: int, share: float, number: int) -> int:
    """A length at a share of the range of a sequence length, of the kind of another: the nearest with a point's remainder."""
    low, high = _range(facts, seq_len)
    length, kind = low + max(int((high - low) * share), 1), kind_of_lengths((like,), facts.chunks)
    if kind == "eights" and not facts.chunks:
        whole = -(-length // CONFIG_MULTIPLE) * CONFIG_MULTIPLE
        return whole if whole <= high else whole - CONFIG_MULTIPLE
    remainders = _REMAINDERS_IN_CHUNKS if facts.chunks else _REMAINDERS
    remainder = remainders[number % len(remainders)]
    alike = (n for n in range(low + 1, high + 1) if kind_of_lengths((n,), facts.chunks) == kind)
    return min(alike, key=lambda n: (n % CONFIG_MULTIPLE != remainder, abs(n - length)), default=length)


def _lengths(facts: ConfigFacts) -> tuple[str, ...]:
    """Symbols of lengths: plain ones, then those rounded up as kernels and models do."""
    if not _has_tokens(facts):
        return ()
    plain = ("s", "t") if facts.inputs == "tokens_and_targets" else ("s",)
    multiples = (8, 16, 32, 128, *facts.chunks)
    padded = (f"padded(1 {x};{multiple};1)" for x in plain for multiple in multiples)
    chunks = (f"chunks(1 {x};{chunk};{more})" for x in plain for chunk in facts.chunks for more in (0, 1))
    return (*plain, *padded, *chunks)
