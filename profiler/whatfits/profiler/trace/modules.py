"""Say which module an op belongs to, in forward, in backward and in checkpoint recompute.

In forward a stack follows module entry and exit. In backward the running autograd node's sequence number tells
when in forward it was created: the tracker keeps (first sequence number, module path) at every change of the
stack, and a bisection finds the module. Recompute enters modules again and so works like forward.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ModuleTracker:
    """Current module path of the running op."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = [""]
        self._starts: list[int] = [0]
        self._paths: list[str] = [""]

    def current(self) -> str:
        """Path of the module whose forward runs, or whose backward the running node belongs to."""
        node = torch._C._current_autograd_node()
        if node is None or len(self._stack) > 1:
            return self._stack[-1]
        sequence = getattr(node, "_sequence_nr", lambda: -1)()
        if sequence < 0 or sequence >= 1 << 62:  # AccumulateGrad carries the largest number
            return ""
        return self._paths[bisect_right(self._starts, sequence) - 1]

    def enter(self, name: str) -> None:
        """Push a path."""
        self._stack.append(name)
        self._note()

    def leave(self) -> None:
        """Pop a path."""
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._paths.append(self._stack[-1])

    @contextmanager
    def follow(self, on_enter: Callable[[str], None], on_exit: Callable[[str], None]) -> Iterator[None]:
        """Track all modules while active; call back with each module's path."""

        def before(module: nn.Module, _args: Any) -> None:
            name = self._names.get(id(module))
            if name is not None:
                self.enter(name)
                on_enter(name)

        def after(module: nn.Module, _args: Any, _output: Any) -> None:
            name = self._names.get(id(module))
            if name is not None:
                on_exit(name)
                self.leave()

        handles = [
            nn.modules.module.register_module_forward_pre_hook(before),
            nn.modules.module.register_module_forward_hook(after, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
