"""Which optimizers have a rank, a projection or quantised states, and the defaults of those settings."""

from typing import Final

from whatfits.estimator.specs.enums import OptimizerName

__all__ = [
    "DEFAULT_BLOCK_SIZE",
    "DEFAULT_PROJECTION_UPDATE_INTERVAL",
    "QUANTISED_OPTIMIZERS",
    "RANKED_OPTIMIZERS",
    "default_rank",
    "rank_is_clipped",
]

RANKED_OPTIMIZERS: Final = frozenset(
    {
        OptimizerName.GALORE_ADAMW,
        OptimizerName.GALORE_ADAMW_8BIT,
        OptimizerName.APOLLO,
        OptimizerName.APOLLO_MINI,
    }
)
"""Optimizers that project gradients to a rank."""

QUANTISED_OPTIMIZERS: Final = frozenset({OptimizerName.ADAMW_8BIT, OptimizerName.GALORE_ADAMW_8BIT})
"""Optimizers that keep 8-bit states with one scale per block."""

DEFAULT_PROJECTION_UPDATE_INTERVAL: Final = 200
"""Steps between two projections: T = 200 in arXiv:2403.03507 (section 5) and arXiv:2412.05270 (section 5.1)."""

DEFAULT_BLOCK_SIZE: Final = 256
"""Values per scale of 8-bit states: bitsandbytes, functional.optimizer_update_8bit_blockwise."""


def default_rank(name: OptimizerName, hidden_size: int) -> int | None:
    """The rank a method's paper uses; None for methods without one.

    A quarter of the hidden size (1 for APOLLO-Mini, which is defined by it).

    Source: arXiv:2403.03507 Table 2 (r / d_model); arXiv:2412.05270 section 5.1.
    """
    if name not in RANKED_OPTIMIZERS:
        return None
    if name is OptimizerName.APOLLO_MINI:
        return 1
    return max(1, hidden_size // 4)


def rank_is_clipped(name: OptimizerName) -> bool:
    """Whether a rank above a matrix's smallest side is cut to that side: an SVD has no more vectors (GaLore)."""
    return name in (OptimizerName.GALORE_ADAMW, OptimizerName.GALORE_ADAMW_8BIT)
