"""Record every storage that an unchanged PyTorch program allocates and frees.

The mode sits below autograd, so it sees each ATen call of forward, backward and checkpoint recompute.
A storage is new when one of an op's outputs holds it for the first time; it is freed when its last
reference dies, which a weak reference to the storage reports at once (reference counting, no garbage
collector: the tracer disables the collector while it records).

Tensor ops that behave differently on a CUDA device than on `meta` go through the hooks of
`cuda_differences`.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whatfits.profiler.trace.events import Alloc, Free, Mark, MarkKind, Phase, Token


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """One step of what an op's device kernel does with memory.

    allocate: a hidden temporary of `value` bytes, none if 0. free: the temporary allocated by the step at index `value`.
    output: the op's `value`-th output tensor, None counted too. absent: the device does not allocate that output.
    formula: the call whose value a temporary's bytes are, where they are no product of sizes. maybe: whether there is
    such a temporary at other sizes only.
    """

    kind: Literal["allocate", "free", "output", "absent"]
    value: int
    formula: tuple[Any, ...] = ()
    maybe: bool = False


Temporaries = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Sequence[DeviceStep]]
"""Given an op, its arguments and its result, the op's memory steps on the device, in order.

Outputs that no step names come first; temporaries that no step frees are freed last, in reverse."""

InPlace = Callable[[Any, tuple[Any, ...], "StorageRecorder"], Any]
"""Given an op and its arguments in backward, the op that the device runs in place on the first argument, or None."""

NodeIdentity = tuple[str, int]


def running_node() -> NodeIdentity | None:
    """Name and sequence number of the autograd node that runs, None outside of backward.

    Not the `id` of its Python object: torch makes that anew for each question, and another node's may get the same.
    """
    node = torch._C._current_autograd_node()
    if node is None:
        return None
    sequence = getattr(node, "_sequence_nr", None)
    return node.name(), id(node) if sequence is None else sequence()


class StorageRecorder(TorchDispatchMode):
    """Dispatch mode that appends an `Alloc` or `Free` per storage of one device type to the current part's tokens."""

    def __init__(
        self,
        *,
        device_type: str,
        current_module: Callable[[], str],
        temporaries: Temporaries,
        in_place: InPlace,
        scalar_answer: Callable[[torch.Tensor], Any] | None,
    ) -> None:
        super().__init__()
        self.phase: Phase = "forward"
        self.keep_empty = False
        """Whether temporaries of 0 bytes are tokens too, so that traces of any sizes have the same tokens."""
        self.keep_possible = False
        """Whether those that there are at other sizes only are tokens as well."""
        self.tokens: list[Token] = []
        self.producer: dict[int, NodeIdentity | None] = {}
        self._live: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._next_block = 0
        self._device_type = device_type
        self._current_module = current_module
        self._temporaries = temporaries
        self._in_place = in_place
        self._scalar_answer = scalar_answer

    def start_part(self) -> list[Token]:
        """Begin a new token list and return it."""
        self.tokens = []
        return self.tokens

    def block_of(self, tensor: torch.Tensor) -> int | None:
        """Number of the recorded block behind a tensor, None for storages that existed before."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        return None if entry is None or entry[0] < 0 else entry[0]

    def ignore(self, tensor: torch.Tensor) -> None:
        """Declare a storage that exists already (parameters, buffers): it is never an event."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._live[key] = (-1, weakref.ref(storage, lambda _: self._live.pop(key, None)))

    def adopt(self, tensor: torch.Tensor) -> int:
        """Take in a storage that exists already and whose end is an event; returns its block, which has no `Alloc`."""
        storage = tensor.untyped_storage()
        block, self._next_block = self._next_block, self._next_block + 1
        self._follow(storage, block)
        return block

    def mark(self, kind: MarkKind, name: str, block: int = -1) -> None:
        """Append a marker."""
        self.tokens.append(Mark(kind, name, block))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (
            func is torch.ops.aten._local_scalar_dense.default
            and self._scalar_answer is not None
            and args[0].is_meta
        ):
            return self._scalar_answer(args[0])
        kwargs = kwargs or {}
        if self.phase == "backward":
            in_place = self._in_place(func, args, self)
            if in_place is not None:
                result = in_place(*args, **kwargs)
                self._record_op(
                    in_place.overloadpacket.__name__,
                    result,
                    self._temporaries(in_place, args, kwargs, result),
                )
                return args[0]
        result = func(*args, **kwargs)
        self._record_op(func.overloadpacket.__name__, result, self._temporaries(func, args, kwargs, result))
        return result

    def _record_op(self, op: str, result: Any, steps: Sequence[DeviceStep]) -> None:
        """Append an op's outputs and hidden temporaries in the order of its steps."""
        outputs = tree_leaves(result)
        named = {step.value for step in steps if step.kind in ("output", "absent")}
        for number, leaf in enumerate(outputs):
            if number not in named:
                self._record(leaf, op)
        temporaries: dict[int, int] = {}
        for index, step in enumerate(steps):
            if step.kind == "output":
                self._record(outputs[step.value], op)
            elif step.kind == "absent":
                self.ignore(outputs[step.value])
            elif step.kind == "free":
                self._free_temporary(temporaries.pop(step.value, None))
            elif step.value or (self.keep_possible if step.maybe else self.keep_empty):
                temporaries[index] = self._new_block(step.value, op, internal=True, formula=step.formula)
        for block in reversed(temporaries.values()):
            self._free_temporary(block)

    def _free_temporary(self, block: int | None) -> None:
        if block is not None:
            self.tokens.append(Free(block))

    def _record(self, tensor: Any, op: str) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        if (
            storage.nbytes() == 0 or tensor.device.type != self._device_type
        ):  # the device allocator never sees these
            self.ignore(tensor)
            return
        block = self._new_block(storage.nbytes(), op, internal=False)
        self.producer[block] = running_node()
        self._follow(storage, block)

    def _follow(self, storage: torch.UntypedStorage, block: int) -> None:
        """Report the storage's end as the block's."""
        key = storage._cdata

        def freed(_: Any) -> None:
            self._free(key, block)

        self._live[key] = (block, weakref.ref(storage, freed))

    def _new_block(self, nbytes: int, op: str, *, internal: bool, formula: tuple[Any, ...] = ()) -> int:
        block, self._next_block = self._next_block, self._next_block + 1
        recompute = self.phase == "backward" and torch.is_grad_enabled()
        self.tokens.append(
            Alloc(
                block,
                nbytes,
                op,
                self._current_module(),
                self.phase,
                recompute=recompute,
                internal=internal,
                formula=formula,
            )
        )
        return block

    def _free(self, key: int, block: int) -> None:
        self.tokens.append(Free(block))
        entry = self._live.get(key)
        if entry is not None and entry[0] == block:
            del self._live[key]
