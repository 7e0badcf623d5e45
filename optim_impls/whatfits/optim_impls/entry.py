"""One row of the registry: what an optimizer is, how it is built, and what it declares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from whatfits.optim_impls.declare import Capabilities, Declaration

__all__ = ["OptimizerEntry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerEntry:
    """An optimizer that `build_optimizer` makes.

    `build` takes parameter groups, each with a key `role` beside `params` (`declare.Role`), and the hyper-parameters,
    complete; it returns the optimizer.
    """

    name: str
    title: str
    summary: str
    """What it saves, in one sentence."""
    paper: str
    licence: str
    """Of the code that runs: ours is Apache-2.0, a library's is its own."""
    source: str
    """`own`, or the class of a library."""
    build: Callable[[Sequence[dict[str, Any]], Mapping[str, Any]], torch.optim.Optimizer]
    defaults: Mapping[str, Any]
    """Every hyper-parameter it takes with its default; others are refused by name."""
    declaration: Declaration
    capabilities: Capabilities = field(default_factory=Capabilities)
    extra: str | None = None
    """The extra of this distribution that brings the library; None where torch is enough."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    """Dtypes of parameters it takes."""
    paper_differences: str = ""
    """Where code and paper differ and what the default follows; empty where they do not."""
    trainer_name: str | None = None
    """`optim=` of Hugging Face's Trainer that runs the same method, if there is one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))
