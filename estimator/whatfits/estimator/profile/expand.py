"""Turn an event program back into the events of one micro-batch, for given dims and depth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from whatfits.estimator.profile.expressions import with_derived_symbols
from whatfits.estimator.profile.program import PARTS, EventProgram, IntArray, PartProgram, Token

__all__ = ["ExpandedEvents", "expand", "expand_structure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedEvents:
    """Events of one micro-batch, parts in order.

    kind: `Token`; block: the allocation's number (an ALLOC's own, a FREE's or GRADIENT_READY's target, else -1);
    size_index: the size expression of the block; label: label of an ALLOC, parameter template of GRADIENT_READY;
    layer: body repetition or -1; part_ends: index where forward, backward and end end.
    """

    kind: IntArray
    block: IntArray
    size_index: IntArray
    label: IntArray
    part_ends: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """Number of allocations."""
        return int((self.kind == Token.ALLOC).sum())

    def nbytes(self, program: EventProgram, symbols: Mapping[str, int]) -> IntArray:
        """Requested bytes of each event's block (0 for marks)."""
        values = with_derived_symbols(symbols)
        sizes = np.array([e.evaluate(values) for e in program.sizes], dtype=np.int64)
        result: IntArray = np.where(self.size_index >= 0, sizes[self.size_index], 0)
        return result


def _unroll(part: PartProgram, repeats: int) -> tuple[IntArray, IntArray]:
    """Tokens of a part with its body repeated, and each token's repetition number (0 outside the body)."""
    tokens = np.concatenate([part.prefix, np.tile(part.body, (repeats, 1)), part.suffix])
    repeat = np.concatenate(
        [
            np.zeros(len(part.prefix), dtype=np.int64),
            np.repeat(np.arange(repeats, dtype=np.int64), len(part.body)),
            np.zeros(len(part.suffix), dtype=np.int64),
        ]
    )
    return tokens, repeat


def expand_structure(program: EventProgram, num_layers: int) -> ExpandedEvents:
    """Events of one micro-batch at a depth, sizes still symbolic.

    Raises:
        ValueError: the program does not cover so few layers.
    """
    repeats = program.num_periods(num_layers, program.base_layers)
    unrolled = [_unroll(program.parts[name], repeats) for name in PARTS]
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in unrolled)])
    tokens = np.concatenate([t for t, _ in unrolled])
    repeat = np.concatenate([r for _, r in unrolled])
    kind, size, label, ref_part, c0, c_total, c_repeat = tokens.T
    is_alloc = kind == Token.ALLOC
    number = np.cumsum(is_alloc) - 1
    block = np.where(is_alloc, number, -1)
    refers = ref_part >= 0
    position = starts[ref_part] + c0 + c_total * repeats + c_repeat * repeat
    target = position[refers]
    if not is_alloc[target].all():
        raise ValueError(
            f"program {program.key.slug} frees something that is not an allocation at {num_layers} layers"
        )
    block[refers] = number[target]
    size_of_block = size[is_alloc]
    size_index = np.where(block >= 0, size_of_block[block], -1)
    return ExpandedEvents(
        kind=kind,
        block=block,
        size_index=size_index,
        label=label,
        part_ends=tuple(int(x) for x in starts[2:]),
    )


def expand(program: EventProgram, symbols: Mapping[str, int]) -> tuple[ExpandedEvents, IntArray]:
    """Events of one micro-batch and the requested bytes of each event's block. `symbols` includes L, b and s.

    What is of zero bytes at these symbols, such as a kernel's scratch below the size that needs it, is no event.
    """
    events = expand_structure(program, symbols["L"])
    nbytes = events.nbytes(program, symbols)
    touches = (events.kind == Token.ALLOC) | (events.kind == Token.FREE)
    kept = ~touches | (nbytes > 0)
    if kept.all():
        return events, nbytes
    stays = kept[events.kind == Token.ALLOC]
    number = np.where(stays, np.cumsum(stays) - 1, -1)
    ends = np.cumsum(kept)[np.array(events.part_ends) - 1]
    block = events.block[kept]
    remaining = ExpandedEvents(
        kind=events.kind[kept],
        block=np.where(block >= 0, number[block], -1),
        size_index=events.size_index[kept],
        label=events.label[kept],
        part_ends=tuple(int(x) for x in ends),
    )
    return remaining, nbytes[kept]
