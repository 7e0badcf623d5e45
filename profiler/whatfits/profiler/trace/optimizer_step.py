"""Trace of an optimizer's ``step()``: every storage it allocates and frees, in order.

Works on any device a `torch.optim.Optimizer` runs on. On ``meta`` a step of a 7B model costs milliseconds; on ``cpu``
the values are real, which methods that branch on them need. What an operator allocates inside its kernel is not seen.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["StepEvent", "StorageLog", "peak_of_step", "state_tensors", "trace_optimizer_step"]


class StepEvent(NamedTuple):
    """One allocation or free; `block` numbers allocations from 0, and is negative for storages older than the step."""

    kind: Literal["alloc", "free"]
    block: int
    nbytes: int


class StorageLog(TorchDispatchMode):
    """Records storages of one device type as operators create them and as they die."""

    def __init__(self, device_type: str, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.events: list[StepEvent] = []
        self._device_type = device_type
        self._blocks: dict[int, int] = {}
        self._finalizers: list[weakref.finalize[..., torch.UntypedStorage]] = []
        self._num_allocated = 0
        self._num_existing = 0
        for tensor in existing:
            self._know(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # the signature is torch's
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._know(tensor)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._see(tensor)
        return result

    def close(self) -> None:
        """Stop listening for frees."""
        for finalizer in self._finalizers:
            finalizer.detach()

    def _know(self, tensor: torch.Tensor) -> None:
        """Register a storage that was there before."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._blocks and tensor.device.type == self._device_type:
            self._num_existing += 1
            self._watch(storage, -self._num_existing)

    def _see(self, tensor: torch.Tensor) -> None:
        """Register a storage an operator returned, if it is new."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._blocks and tensor.device.type == self._device_type:
            block = self._num_allocated
            self._num_allocated += 1
            self.events.append(StepEvent("alloc", block, storage.nbytes()))
            self._watch(storage, block)

    def _watch(self, storage: torch.UntypedStorage, block: int) -> None:
        # torch keeps one Python object per storage alive as long as the storage, so its id identifies the storage.
        self._blocks[id(storage)] = block
        self._finalizers.append(weakref.finalize(storage, self._freed, id(storage), storage.nbytes()))

    def _freed(self, storage_id: int, nbytes: int) -> None:
        self.events.append(StepEvent("free", self._blocks.pop(storage_id), nbytes))


def trace_optimizer_step(optimizer: torch.optim.Optimizer) -> list[StepEvent]:
    """Allocations and frees of one ``optimizer.step()`` on the device of its first parameter, in order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device_type = parameters[0].device.type
    existing = [*parameters, *(p.grad for p in parameters if p.grad is not None), *state_tensors(optimizer)]
    log = StorageLog(device_type, existing)
    del parameters, existing
    with log:
        optimizer.step()
    log.close()
    return log.events


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Tensors of the optimizer's state, those inside its helper objects (projectors) included."""
    held: list[torch.Tensor] = []
    for state in optimizer.state.values():
        for value in state.values():
            held.extend(
                _tensors(value if isinstance(value, torch.Tensor) else getattr(value, "__dict__", value))
            )
    return held


def peak_of_step(events: Iterable[StepEvent]) -> int:
    """Highest sum of live bytes over the events, counted from 0."""
    live = peak = 0
    for event in events:
        live += event.nbytes if event.kind == "alloc" else -event.nbytes
        peak = max(peak, live)
    return peak


def _tensors(tree: Any) -> Iterator[torch.Tensor]:  # any nesting of containers
    for leaf in tree_iter(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf
