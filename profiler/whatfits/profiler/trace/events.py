"""What a trace is made of: allocations, frees and marks, in the order the program issued them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["forward", "loss", "backward", "end"]
MarkKind = Literal["layer_enter", "layer_exit", "gradient_ready"]


@dataclass(slots=True)
class Alloc:
    """One new storage. `category` is decided when the trace is complete; `formula` is the call that gives the bytes."""

    block: int
    nbytes: int
    op: str
    module: str
    phase: Phase
    recompute: bool = False
    internal: bool = False
    category: str = ""
    formula: tuple[Any, ...] = ()


@dataclass(slots=True)
class Free:
    """The last reference to a storage went away."""

    block: int


@dataclass(slots=True)
class Mark:
    """A point in the step that later composition needs: a layer's edges, a complete gradient."""

    kind: MarkKind
    name: str
    block: int = -1


Token = Alloc | Free | Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The tokens of one micro-batch by part, plus the parameters and buffers that existed before it.

    `parts` maps "forward", "backward" and "end" to token lists; block numbers are shared between them.
    `parameters` are (name, shape, bytes per element, role, trains), `buffers` (name, nbytes), in module order.
    """

    parts: dict[str, list[Token]]
    parameters: tuple[tuple[str, tuple[int, ...], int, str, bool], ...]
    buffers: tuple[tuple[str, int], ...]

    def live_bytes(self, *, rounded_to: int = 1) -> list[int]:
        """Bytes live after each token over all parts, without parameters and buffers."""
        sizes: dict[int, int] = {}
        live, curve = 0, []
        for token in (token for part in self.parts.values() for token in part):
            if isinstance(token, Alloc):
                sizes[token.block] = -(-token.nbytes // rounded_to) * rounded_to
                live += sizes[token.block]
            elif isinstance(token, Free):
                live -= sizes.pop(token.block)
            curve.append(live)
        return curve


def signed_bytes(tokens: Iterable[Token], existing_bytes: Mapping[int, int] | None = None) -> list[int]:
    """Bytes of each allocation, negated for each free, in order; `existing_bytes` of blocks from before, by block."""
    sizes = dict(existing_bytes or {})
    signed = []
    for token in tokens:
        if isinstance(token, Alloc):
            sizes[token.block] = token.nbytes
            signed.append(token.nbytes)
        elif isinstance(token, Free):
            signed.append(-sizes[token.block])
    return signed
