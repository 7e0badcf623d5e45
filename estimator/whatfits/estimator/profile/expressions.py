"""Sizes as exact polynomials in the symbols of a model and a micro-batch.

Symbols: b micro-batch size, s sequence length, L layers, h hidden size, i intermediate size, a attention heads,
k key-value heads, d head dim, V vocabulary, r adapter rank. Further symbols derive from these: paddings, and what
kernels allocate for themselves, which may be piecewise and may be 0.

| derived | value |
|---|---|
| s8, s32, s128 | s rounded up to the multiple: padded masks, softmax sums of the efficient kernel, scratch of the flash kernel |
| d32, h32 | d rounded up to 32 (to 64 above 128), h to 32 |
| d_wide | d where it is above 128, else 0 |
| splits | pieces the flash kernel splits the keys into, 0 where it does not |
| efficient16, efficient32 | workspace of the efficient kernel's backward, by bits of an element |
| cudnn, cudnn_full | workspace of cuDNN attention's backward, with k heads of keys or as many as of queries |
| scan_s | scratch of a cumulative sum over one sequence |
| sort, sorted | 1 and T = b s where the embedding's backward sorts its ids, else 0 |
| segments, pieces | distinct ids and pieces of at most 10 equal ids it allows for, 0 where it does not sort |
| sort_scratch, unique_scratch, segment_scratch | scratch of its sort, of its search and of its sum, 0 where it does not sort |
| sum_h, sum_ad, sum_kd, sum_i | staging of a sum over all T rows of h, a d, k d or i columns: the gradient of a norm's weight, of a bias, of DoRA's magnitudes |
| sum_h_flags, ... | semaphores of the same |
| chunk0 ... chunk7 | tokens of each eighth of a sequence, the longer ones first: the chunked loss |
| fused_rows | tokens whose logits the fused loss has at a time |
| nf4_ad, nf4_kd, nf4_i | bytes of 4-bit weights that join h with a d, k d or i |
| nf4_blocks_ad, ... | blocks of 64 of these weights, each with a scale |
| nf4_groups_ad, ... | groups of 256 of these blocks, each with a scale of scales |
| square_h, square_ad, square_i | square matrices, which DoRA makes of its inputs' sizes |

`sum_...` depend on the GPU: its streaming multiprocessors may be given as symbols `sms` and `threads_per_sm`.

In the profile of one config the dims are numbers, and what kernels allocate for themselves are calls (`formulas`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from whatfits.estimator.profile.formulas import evaluate_call, is_call, parse_call, split_outside
from whatfits.estimator.profile.scratch import (
    DEFAULT_SMS,
    DEFAULT_THREADS_PER_SM,
    UNSORTED_IDS,
    cudnn_backward_scratch,
    efficient_backward_scratch,
    flash_splits,
    may_split,
    output_vector,
    partial_segments,
    radix_sort_scratch,
    reduction_scratch,
    scan_scratch,
    unique_scratch,
)

__all__ = ["CLASS_SYMBOLS", "DERIVED_SIZES", "SizeExpression", "with_derived_symbols"]


@dataclass(frozen=True, slots=True)
class SizeExpression:
    """A sum of terms, each an integer times a monomial: ((coefficient, ((symbol, exponent), ...)), ...)."""

    terms: tuple[tuple[int, tuple[tuple[str, int], ...]], ...]

    def evaluate(self, symbols: Mapping[str, Any]) -> Any:
        """Value for the given symbols: an int, or an integer array where symbols are arrays."""
        total: Any = 0
        for coefficient, monomial in self.terms:
            value: Any = coefficient
            for symbol, exponent in monomial:
                value = value * symbols[symbol] ** exponent
            total = total + value
        return total

    def __str__(self) -> str:
        """Readable form, such as `4 b s h + 8 b`."""
        if not self.terms:
            return "0"
        return " + ".join(
            " ".join([str(c), *(x if e == 1 else f"{x}^{e}" for x, e in monomial)])
            for c, monomial in self.terms
        )

    @classmethod
    def parse(cls, text: str) -> "SizeExpression":
        """Inverse of `str`.

        Raises:
            ValueError: the text is no such form.
        """
        terms = []
        for term in split_outside(text, " + ") if text != "0" else ():
            coefficient, *factors = split_outside(term, " ")
            powers = (split_outside(factor, "^") for factor in factors)
            terms.append((int(coefficient), tuple((x, int(e[0]) if e else 1) for x, *e in powers)))
        return cls(tuple(terms))

    def to_json(self) -> list[Any]:
        """Plain lists for storage."""
        return [[c, [[x, e] for x, e in monomial]] for c, monomial in self.terms]

    @classmethod
    def from_json(cls, data: list[Any]) -> "SizeExpression":
        """Inverse of `to_json`."""
        return cls(tuple((c, tuple((x, e) for x, e in monomial)) for c, monomial in data))


def with_derived_symbols(symbols: Mapping[str, Any]) -> dict[str, Any]:
    """The symbols and, when asked for, those that derive from them. Works on ints and integer arrays."""
    return _Derived(symbols)


class _Derived(dict[str, Any]):
    """Computes a derived symbol at its first use."""

    def __missing__(self, name: str) -> Any:
        value = self._call(name) if is_call(name) else _DERIVED[name](self)
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim):
            value = int(value)
        self[name] = value
        return value

    def _call(self, symbol: str) -> Any:
        name, arguments = parse_call(symbol)
        return evaluate_call(name, self, [SizeExpression.parse(a).evaluate(self) for a in arguments])


def _multiple(symbol: str, multiple: int) -> Callable[[_Derived], Any]:
    return lambda x: -(-x[symbol] // multiple) * multiple


def _padded_head(x: _Derived) -> Any:
    multiple = np.where(np.asarray(x["d"]) <= 128, 32, 64)
    return -(-x["d"] // multiple) * multiple


def _tokens(x: _Derived) -> Any:
    return x.get("b", 1) * x["s"]


def _splits(x: _Derived) -> Any:
    """`flash_splits` of every configuration, computed once for each of the few small ones that are split at all."""
    batch, seq_len = np.broadcast_arrays(x.get("b", 1), x["s"])
    heads, head_dim, sms = x["a"], x["d"], x.get("sms", DEFAULT_SMS)
    if isinstance(heads, np.ndarray) or isinstance(head_dim, np.ndarray):
        return np.vectorize(flash_splits, otypes=[np.int64])(batch, heads, seq_len, head_dim, sms)
    splits = np.zeros(batch.shape, dtype=np.int64)
    small = may_split(batch, heads, seq_len, sms)
    points, which = np.unique(np.stack([batch[small], seq_len[small]]), axis=1, return_inverse=True)
    found = [flash_splits(int(b), heads, int(s), head_dim, sms) for b, s in points.T]
    splits[small] = np.array(found, dtype=np.int64)[which.ravel()]
    return splits


def _efficient(element_bytes: int) -> Callable[[_Derived], Any]:
    return lambda x: efficient_backward_scratch(x.get("b", 1), x["a"], x["s"], x["d"], element_bytes)


def _sum(columns: str, part: int) -> Callable[[_Derived], Any]:
    def staging(x: _Derived) -> Any:
        outputs = np.asarray(1)
        for symbol in columns:
            outputs = outputs * x[symbol]
        gpu = {
            "sms": x.get("sms", DEFAULT_SMS),
            "threads_per_sm": x.get("threads_per_sm", DEFAULT_THREADS_PER_SM),
        }
        return reduction_scratch(outputs, _tokens(x), vector=output_vector(outputs), **gpu)[part]

    return staging


def _chunk(number: int) -> Callable[[_Derived], Any]:
    """Tokens of an eighth, as `torch.tensor_split` cuts them."""
    return lambda x: (x["s"] + 7 - number) // 8


def _fused_rows(x: _Derived) -> Any:
    """Rows = min(T, 2 ^ ceil(log2(ceil(T / ceil(V / h))))).

    Source: Liger-Kernel 0.8.5, ops/fused_linear_cross_entropy.py. Assumes: its default chunk budget of 1.
    """
    tokens = np.asarray(_tokens(x))
    rows = -(-tokens // -(-x["V"] // x["h"]))
    power = 2 ** np.ceil(np.log2(rows)).astype(np.int64)
    return np.minimum(tokens, power)


def _product(x: _Derived, symbols: str) -> Any:
    found = 1
    for symbol in symbols:
        found = found * x[symbol]
    return found


def _per_weights(other: str, multiple: int) -> Callable[[_Derived], Any]:
    """Weights that join h with another size, by the multiple, rounded up."""
    return lambda x: -(-(x["h"] * _product(x, other)) // multiple)


def _square(side: str) -> Callable[[_Derived], Any]:
    return lambda x: _product(x, side) ** 2


_DERIVED: dict[str, Callable[[_Derived], Any]] = {
    "s8": _multiple("s", 8),
    "s32": _multiple("s", 32),
    "s128": _multiple("s", 128),
    "h32": _multiple("h", 32),
    "d32": _padded_head,
    "d_wide": lambda x: x["d"] * np.where(np.asarray(x["d"]) > 128, 1, 0),
    "splits": _splits,
    "efficient16": _efficient(2),
    "efficient32": _efficient(4),
    "cudnn": lambda x: cudnn_backward_scratch(x.get("b", 1), x["a"], x["k"], x["s"], x["d"]),
    "cudnn_full": lambda x: cudnn_backward_scratch(x.get("b", 1), x["a"], x["a"], x["s"], x["d"]),
    "scan_s": lambda x: scan_scratch(x["s"], 8),
    "sort": lambda x: np.where(np.asarray(_tokens(x)) > UNSORTED_IDS, 1, 0),
    "sorted": lambda x: _tokens(x) * x["sort"],
    "segments": lambda x: np.minimum(_tokens(x), x["V"]) * x["sort"],
    "pieces": lambda x: partial_segments(_tokens(x), x["V"]) * x["sort"],
    "sort_scratch": lambda x: radix_sort_scratch(_tokens(x), 8, 8) * x["sort"],
    "unique_scratch": lambda x: unique_scratch(_tokens(x)) * x["sort"],
    "segment_scratch": lambda x: scan_scratch(np.minimum(_tokens(x), x["V"]), 8) * x["sort"],
    "sum_h": _sum("h", 0),
    "sum_h_flags": _sum("h", 1),
    "sum_ad": _sum("ad", 0),
    "sum_ad_flags": _sum("ad", 1),
    "sum_kd": _sum("kd", 0),
    "sum_kd_flags": _sum("kd", 1),
    "sum_i": _sum("i", 0),
    "sum_i_flags": _sum("i", 1),
    **{f"chunk{number}": _chunk(number) for number in range(8)},
    "fused_rows": _fused_rows,
    **{f"nf4_{other}": _per_weights(other, 2) for other in ("ad", "kd", "i")},
    **{f"nf4_blocks_{other}": _per_weights(other, 64) for other in ("ad", "kd", "i")},
    **{f"nf4_groups_{other}": _per_weights(other, 64 * 256) for other in ("ad", "kd", "i")},
    **{f"square_{side}": _square(side) for side in ("h", "ad", "i")},
}
CLASS_SYMBOLS = {
    "chunked": tuple(f"chunk{number}" for number in range(8)),
    "fused_linear": ("fused_rows",),
    "qlora": tuple(
        f"nf4_{kind}{other}" for kind in ("", "blocks_", "groups_") for other in ("ad", "kd", "i")
    ),
    "dora": ("sum_i", "sum_i_flags", "square_h", "square_ad", "square_i"),
}
"""Derived symbols of some losses and adapters only."""
_NO_SIZES = (
    "s8",
    "s32",
    "s128",
    "h32",
    "d32",
    "d_wide",
    "splits",
    "sort",
    *chain.from_iterable(CLASS_SYMBOLS.values()),
)
DERIVED_SIZES = tuple(name for name in _DERIVED if name not in _NO_SIZES)
"""The derived symbols of all classes that are themselves counts or bytes, not factors of other sizes."""
