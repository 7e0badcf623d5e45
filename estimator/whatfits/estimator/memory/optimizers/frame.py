"""The Python frame of a ``step()``: which temporaries are alive, statement by statement.

CPython frees a tensor when the last name for it goes away. A loop over parameters therefore still holds the previous
parameter's temporaries while it computes the next one's, until each name is assigned anew. The programs of the
per-parameter optimizers are written against this frame so that they hold exactly that.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple

from whatfits.estimator.memory.optimizers.program import GRADIENT, OptimizerEvent
from whatfits.estimator.units import round_allocation

__all__ = ["Block", "Carry", "CostFrame", "Frame", "NumberedEvent", "number_blocks"]


class Block(NamedTuple):
    """A live device allocation."""

    key: Hashable
    nbytes: int
    label: str


class Carry(NamedTuple):
    """What one parameter's update leaves for the next.

    `variables` are local names, the number of the block each holds, and its bytes; names of one number hold the same
    tensor. `shared` are the shared state tensors made so far.
    """

    variables: tuple[tuple[str, int, int], ...] = ()
    shared: tuple[str, ...] = ()


class Frame:
    """Records allocations and frees of one ``step()`` call."""

    def __init__(self, carry: Carry | None = None) -> None:
        self.events: list[OptimizerEvent] = []
        self._num_temporaries = 0
        carry = Carry() if carry is None else carry
        self._shared = list(carry.shared)
        self._variables = {
            name: Block(("carry", number), nbytes, name) for name, number, nbytes in carry.variables
        }

    def temporary(self, nbytes: int, label: str) -> Block:
        """Allocate a temporary."""
        block = Block(("tmp", self._num_temporaries), nbytes, label)
        self._num_temporaries += 1
        self._record("alloc", block)
        return block

    def state(self, owner: str, name: str, nbytes: int) -> None:
        """Allocate a persistent tensor."""
        self._record("alloc", Block((owner, name), nbytes, name))

    def replace_state(self, owner: str, name: str, nbytes: int) -> None:
        """Allocate the successor of a persistent tensor, then free the one it replaces."""
        self.state(owner, name, nbytes)
        self.drop_state(owner, name, nbytes)

    def drop_state(self, owner: str, name: str, nbytes: int) -> None:
        """Free the oldest block of a persistent tensor."""
        self._record("free", Block((owner, name), nbytes, name))

    def shared_state(self, name: str, nbytes: int) -> None:
        """Allocate a tensor all parameters share, the first time it is needed."""
        if name not in self._shared:
            self._shared.append(name)
            self.state("optimizer", name, nbytes)

    def drop_gradient(self, owner: str, nbytes: int) -> None:
        """Free a parameter's gradient, which was there before the step."""
        self._record("free", Block((GRADIENT, owner), nbytes, GRADIENT))

    def free(self, *blocks: Block) -> None:
        """Free temporaries, in the order given."""
        for block in blocks:
            self._record("free", block)

    def assign(self, name: str, block: Block) -> None:
        """Bind a local name, which frees what it held before unless another name holds it too."""
        old = self._variables.get(name)
        self._variables[name] = block
        self._release(old)

    def clear(self, name: str) -> None:
        """Unbind a local name, which frees what it held unless another name holds it too."""
        self._release(self._variables.pop(name, None))

    def leave(self, order: Iterable[str]) -> None:
        """Return from ``step()``: the names still bound are freed in the order of the frame's slots."""
        for name in order:
            self.clear(name)
        if self._variables:
            msg = f"local_names lacks {sorted(self._variables)}"
            raise RuntimeError(msg)

    def carry(self) -> Carry:
        """What the next parameter's update starts from."""
        numbers: dict[Hashable, int] = {}
        held = sorted(self._variables.items())
        for _, block in held:
            numbers.setdefault(block.key, len(numbers))
        variables = tuple((name, numbers[block.key], block.nbytes) for name, block in held)
        return Carry(variables, tuple(self._shared))

    def _release(self, block: Block | None) -> None:
        if block is not None and all(block.key != other.key for other in self._variables.values()):
            self._record("free", block)

    def _record(self, kind: Literal["alloc", "free"], block: Block) -> None:
        self.events.append(OptimizerEvent(kind, block.key, block.nbytes, block.label))


class CostFrame(Frame):
    """A frame that sums bytes, each tensor rounded up to 512, instead of listing events."""

    def __init__(self, carry: Carry) -> None:
        super().__init__(carry)
        self.live = 0
        self.peak = 0

    def _record(self, kind: Literal["alloc", "free"], block: Block) -> None:
        if kind == "free":
            self.live -= round_allocation(block.nbytes)
        else:
            self.live += round_allocation(block.nbytes)
            self.peak = max(self.peak, self.live)


class NumberedEvent(NamedTuple):
    """An optimizer event with the number of its block instead of its key."""

    kind: Literal["alloc", "free"]
    block: int
    nbytes: int


def number_blocks(
    events: Iterable[OptimizerEvent], *, live: dict[Hashable, deque[int]] | None = None, first_block: int = 0
) -> list[NumberedEvent]:
    """Events with block numbers; a free releases the oldest live block of its key.

    `live` maps the keys of blocks allocated earlier (state) to their numbers and is updated in place; a free of a key
    that is not in it gets block -1. New blocks are numbered from `first_block`.
    """
    blocks: dict[Hashable, deque[int]] = defaultdict(deque) if live is None else live
    numbered: list[NumberedEvent] = []
    for event in events:
        queue = blocks.setdefault(event.key, deque())
        if event.kind == "alloc":
            queue.append(first_block)
            numbered.append(NumberedEvent("alloc", first_block, event.nbytes))
            first_block += 1
        else:
            numbered.append(NumberedEvent("free", queue.popleft() if queue else -1, event.nbytes))
    return numbered
