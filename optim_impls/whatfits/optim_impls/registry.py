"""The optimizers there are, one row each, in one table."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.optim_impls import (
    adan,
    apollo,
    blockwise_8bit,
    fira,
    frugal_entry,
    galore,
    galore_8bit,
    galore_adafactor,
    gwt,
    ldadam,
    lion,
    mezo,
    q_apollo,
    q_galore,
    sm3,
    sophia,
    subtrack,
)
from whatfits.optim_impls.adapters import (
    badam,
    bitsandbytes,
    pytorch_optimizer,
    schedulefree,
    torch_optim,
    torchao,
)
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["REGISTRY"]

_ENTRIES: tuple[OptimizerEntry, ...] = (
    # torch
    *torch_optim.ENTRIES,
    # Elementwise, factored and split methods
    lion.ENTRY,
    adan.ENTRY,
    sm3.ENTRY,
    sophia.ENTRY,
    gwt.ENTRY,
    *frugal_entry.ENTRIES,
    mezo.ENTRY,
    # Low-rank projections
    *apollo.ENTRIES,
    galore.ENTRY,
    galore_adafactor.ENTRY,
    fira.ENTRY,
    ldadam.ENTRY,
    subtrack.ENTRY,
    # Quantised states and weights
    *blockwise_8bit.ENTRIES,
    galore_8bit.ENTRY,
    q_galore.ENTRY,
    *q_apollo.ENTRIES,
    # Libraries, each an extra
    *torchao.ENTRIES,
    *bitsandbytes.ENTRIES,
    *pytorch_optimizer.ENTRIES,
    *schedulefree.ENTRIES,
    *badam.ENTRIES,
)

REGISTRY: Mapping[str, OptimizerEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every optimizer by its name; `build_optimizer` makes them."""
