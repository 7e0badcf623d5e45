"""Hold a compiled profile against a direct trace of the real model code, event for event."""

from dataclasses import dataclass

import numpy as np

from whatfits.estimator.profile import CountTable, EventProgram, Token, expand, with_derived_symbols
from whatfits.profiler.trace.events import Alloc, Free, Mark, Trace
from whatfits.profiler.trace.options import Dims

__all__ = ["Comparison", "compare_with_trace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between a profile and a direct trace at one point."""

    num_events: int
    num_different_events: int
    traced_peak_bytes: int
    table_peak_bytes: int
    traced_peak_rounded_bytes: int
    table_peak_rounded_bytes: int

    @property
    def exact(self) -> bool:
        """No difference at all."""
        return (
            self.num_different_events == 0
            and self.traced_peak_bytes == self.table_peak_bytes
            and self.traced_peak_rounded_bytes == self.table_peak_rounded_bytes
        )


def table_peak(table: CountTable, dims: Dims, rounded_to: int) -> int:
    """Largest row of the table: bytes of one micro-batch with gradients kept."""
    symbols = with_derived_symbols(dims)
    sizes = np.array(
        [-(-e.evaluate(symbols) // rounded_to) * rounded_to for e in table.sizes], dtype=np.int64
    )
    return int((table.counts(dims["L"]).sum(axis=1) @ sizes).max())


def compare_with_trace(program: EventProgram, table: CountTable, trace: Trace, dims: Dims) -> Comparison:
    """Expand the program, evaluate the table and compare both with a trace at the same dims."""
    events, nbytes = expand(program, dims)
    empty = {t.block for p in trace.parts.values() for t in p if isinstance(t, Alloc) and not t.nbytes}
    tokens = [t for part in trace.parts.values() for t in part if isinstance(t, Mark) or t.block not in empty]
    number: dict[int, int] = {}
    different = abs(len(tokens) - len(events.kind))
    for j, token in enumerate(tokens[: len(events.kind)]):
        kind, block = events.kind[j], events.block[j]
        if isinstance(token, Alloc):
            number[token.block] = len(number)
            same = kind == Token.ALLOC and nbytes[j] == token.nbytes and block == number[token.block]
        elif isinstance(token, Free):
            same = kind == Token.FREE and block == number[token.block]
        else:
            same = kind.item() == Token[token.kind.upper()] and (
                token.block < 0 or block == number[token.block]
            )
        different += not same
    return Comparison(
        num_events=len(tokens),
        num_different_events=different,
        traced_peak_bytes=max(trace.live_bytes()),
        table_peak_bytes=table_peak(table, dims, 1),
        traced_peak_rounded_bytes=max(trace.live_bytes(rounded_to=512)),
        table_peak_rounded_bytes=table_peak(table, dims, 512),
    )
