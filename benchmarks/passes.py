"""How often an optimizer's step moves its parameters' bytes, counted operator by operator."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["Passes"]


class Passes(TorchDispatchMode):
    """Bytes that operators move to and from memory, behind a cache that keeps what was used last; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self._cached: OrderedDict[tuple[int, int], bool] = OrderedDict()
        """Address and bytes of what is in the cache, last used last, and whether it was written there."""
        self._cached_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # the signature is torch's
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name, schema = func.overloadpacket.__name__, func._schema  # noqa: SLF001 (torch has no other way)
        if func.is_view or name.startswith(("empty", "detach", "_unsafe_view")):
            return result
        given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | kwargs
        written = [*tensors(result)]
        for argument in schema.arguments:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            found = [*tensors(given.get(argument.name))]
            if not (is_written and (name in WRITES_ONLY or argument.name.startswith("out"))):
                for tensor in found:
                    self._touch(tensor, writes=False)
            written += found if is_written else []
        for tensor in {t.data_ptr(): t for t in written}.values():
            self._touch(tensor, writes=True)
        return result

    def _touch(self, tensor: torch.Tensor, *, writes: bool) -> None:
        key = (tensor.data_ptr(), tensor.nbytes)
        is_dirty = self._cached.pop(key, None)
        if is_dirty is None:
            self._cached_bytes += tensor.nbytes
        if not (is_dirty if writes else is_dirty is not None):
            self.nbytes += tensor.nbytes
        self._cached[key] = bool(is_dirty) or writes
        while self._cached_bytes > CACHE_BYTES:
            (_, nbytes), _ = self._cached.popitem(last=False)
            self._cached_bytes -= nbytes


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Tensors in any nesting."""
    yield from (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


CACHE_BYTES = 16 * 2**20
WRITES_ONLY = frozenset({"copy_", "zero_", "fill_", "normal_", "_foreach_copy_", "_foreach_zero_"})
