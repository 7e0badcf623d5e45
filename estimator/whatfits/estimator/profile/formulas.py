"""Sizes of kernels' scratch as calls: what a size expression says where no product of symbols can.

A call is a symbol of its own, written `name(argument;...)`, such as `sort_scratch(4 b s;8;9)`. Its arguments are size
expressions in the plain symbols and in calls, or numbers. The tracer computes a temporary's bytes with the same function at the
sizes it sees, so what a profile evaluates later is what was traced.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whatfits.estimator.profile.scratch import (
    DEFAULT_SMS,
    DEFAULT_THREADS_PER_SM,
    UNSORTED_IDS,
    cudnn_backward_scratch,
    efficient_backward_scratch,
    flash_splits,
    output_vector,
    partial_segments,
    radix_sort_scratch,
    reduction_scratch,
    scan_scratch,
    unique_scratch,
)

__all__ = [
    "FORMULAS",
    "LONG_SORT",
    "call_symbol",
    "evaluate_call",
    "is_call",
    "parse_call",
    "round_up",
    "split_outside",
]

Gpu = Mapping[str, Any]
"""The GPU's symbols: `sms`, `threads_per_sm`; an H100's where they are absent."""
_CALL = re.compile(r"(\w+)\((.*)\)")
_LONG_ROW = 128
LONG_SORT = 4096
"""Values of a row above which cub sorts it."""


def round_up(value: Any, multiple: int) -> Any:
    """The next multiple that is not below a value."""
    return -(-value // multiple) * multiple


def _sorted(gpu: Gpu, count: Any, nbytes: int) -> Any:
    """`nbytes` for each id where there are enough of them to be sorted."""
    del gpu
    return count * nbytes * (count > UNSORTED_IDS)


def _sorted_once(gpu: Gpu, count: Any, nbytes: int) -> Any:
    del gpu
    return nbytes * (count > UNSORTED_IDS)


def _sort_scratch(gpu: Gpu, count: Any, key_bytes: int, capability: int) -> Any:
    del gpu
    scratch = radix_sort_scratch(count, key_bytes, key_bytes, capability=capability)
    return scratch * (count > UNSORTED_IDS)


def _unique_scratch(gpu: Gpu, count: Any, key_bytes: int) -> Any:
    del gpu
    return unique_scratch(count, key_bytes) * (count > UNSORTED_IDS)


def _segments(gpu: Gpu, count: Any, rows: Any, nbytes: int) -> Any:
    del gpu
    return nbytes * np.minimum(count, rows) * (count > UNSORTED_IDS)


def _segment_scratch(gpu: Gpu, count: Any, rows: Any, nbytes: int) -> Any:
    del gpu
    return scan_scratch(np.minimum(count, rows), nbytes) * (count > UNSORTED_IDS)


def _pieces(gpu: Gpu, count: Any, rows: Any, nbytes: int) -> Any:
    del gpu
    return nbytes * partial_segments(count, rows) * (count > UNSORTED_IDS)


def _index_sort(gpu: Gpu, count: Any, rows: Any, capability: int) -> Any:
    """Sort of linear indices, over as many bits as count the rows."""
    del gpu
    bits = np.maximum(np.ceil(np.log2(np.maximum(rows, 2))).astype(np.int64), 1)
    return radix_sort_scratch(count, 8, 8, bits, capability=capability)


def _row_sort(gpu: Gpu, count: Any, key_bytes: int, capability: int) -> Any:
    del gpu
    return radix_sort_scratch(count, key_bytes, 8, capability=capability) * (count > LONG_SORT)


def _scan(gpu: Gpu, count: Any, nbytes: int) -> Any:
    del gpu
    return scan_scratch(count, nbytes)


def _reduction(part: int) -> Callable[..., Any]:
    def formula(
        gpu: Gpu, outputs: Any, inputs: Any, fastest: int, flat: int, accumulator: int, multiple: Any
    ) -> Any:
        """`flat`: whether contiguous values are loaded by four; `multiple`: what a vector of outputs must divide."""
        return reduction_scratch(
            outputs,
            inputs,
            fastest=bool(fastest),
            vector=output_vector(multiple),
            loads=np.where(flat & (inputs > _LONG_ROW), 4, 1),
            accumulator_bytes=accumulator,
            sms=gpu.get("sms", DEFAULT_SMS),
            threads_per_sm=gpu.get("threads_per_sm", DEFAULT_THREADS_PER_SM),
        )[part]

    return formula


def _flash_splits(gpu: Gpu, batch: Any, heads: Any, seq_len: Any, head_dim: Any, nbytes: Any) -> Any:
    """`nbytes` for each piece, batch, head and query."""
    splits = np.vectorize(flash_splits, otypes=[np.int64])
    return (
        splits(batch, heads, seq_len, head_dim, gpu.get("sms", DEFAULT_SMS))
        * nbytes
        * batch
        * heads
        * seq_len
    )


def _efficient(gpu: Gpu, batch: Any, heads: Any, seq_len: Any, head_dim: Any, element_bytes: int) -> Any:
    del gpu
    return efficient_backward_scratch(batch, heads, seq_len, head_dim, element_bytes)


def _cudnn(gpu: Gpu, batch: Any, heads: Any, kv_heads: Any, seq_len: Any, head_dim: Any) -> Any:
    del gpu
    return cudnn_backward_scratch(batch, heads, kv_heads, seq_len, head_dim)


def _padded(gpu: Gpu, value: Any, multiple: int, factor: Any) -> Any:
    """`factor` times a length rounded up."""
    del gpu
    return round_up(value, multiple) * factor


def _chunks(gpu: Gpu, value: Any, length: int, more: int) -> Any:
    """Pieces a sequence is cut into, and some more."""
    del gpu
    return -(-value // length) + more


def _vector(gpu: Gpu, value: Any) -> Any:
    """Outputs that a thread of a reduction handles at once, by what they must divide."""
    del gpu
    return output_vector(value)


FORMULAS: dict[str, Callable[..., Any]] = {
    "sorted": _sorted,
    "sorted_once": _sorted_once,
    "sort_scratch": _sort_scratch,
    "unique_scratch": _unique_scratch,
    "segments": _segments,
    "segment_scratch": _segment_scratch,
    "pieces": _pieces,
    "index_sort": _index_sort,
    "row_sort": _row_sort,
    "scan": _scan,
    "staging": _reduction(0),
    "semaphores": _reduction(1),
    "flash_splits": _flash_splits,
    "efficient": _efficient,
    "cudnn": _cudnn,
    "padded": _padded,
    "chunks": _chunks,
    "vector": _vector,
}
"""By name; each takes the GPU's symbols, then its arguments, ints or integer arrays."""


def call_symbol(name: str, arguments: Sequence[Any]) -> str:
    """The symbol of a call, its arguments as they print."""
    return f"{name}({';'.join(str(a) for a in arguments)})"


def is_call(symbol: str) -> bool:
    """Whether a symbol is a call."""
    return symbol.endswith(")")


def parse_call(symbol: str) -> tuple[str, list[str]]:
    """Name and printed arguments of a call.

    Raises:
        ValueError: it is none, or of no known formula.
    """
    found = _CALL.fullmatch(symbol)
    if found is None or found[1] not in FORMULAS:
        raise ValueError(f"{symbol!r} is no call of a known formula; known: {', '.join(FORMULAS)}")
    return found[1], split_outside(found[2], ";") if found[2] else []


def split_outside(text: str, separator: str) -> list[str]:
    """Pieces of a text between the separators that are in no call."""
    pieces, depth = [""], 0
    for piece in text.split(separator):
        pieces[-1] += piece
        depth += piece.count("(") - piece.count(")")
        if depth:
            pieces[-1] += separator
        else:
            pieces.append("")
    return pieces[:-1]


def evaluate_call(name: str, gpu: Gpu, arguments: Sequence[Any]) -> Any:
    """Bytes of a call with its arguments evaluated."""
    return FORMULAS[name](gpu, *arguments)
