"""Which optimizers have a rank or quantised states, as far as the rules of a run need to know."""

from typing import Final

from whatfits.estimator.specs.enums import OptimizerName

__all__ = ["QUANTISED_OPTIMIZERS", "RANKED_OPTIMIZERS", "rank_is_clipped"]

RANKED_OPTIMIZERS: Final = frozenset(
    {
        OptimizerName.GALORE_ADAMW,
        OptimizerName.GALORE_ADAMW_8BIT,
        OptimizerName.APOLLO,
        OptimizerName.APOLLO_MINI,
    }
)
"""Optimizers that project gradients to a rank."""

QUANTISED_OPTIMIZERS: Final = frozenset(
    {OptimizerName.ADAMW_8BIT, OptimizerName.PAGED_ADAMW_8BIT, OptimizerName.GALORE_ADAMW_8BIT}
)
"""Optimizers that keep 8-bit states with one scale per block."""


def rank_is_clipped(name: OptimizerName) -> bool:
    """Whether a rank above a matrix's smallest side is cut to that side: an SVD has no more vectors (GaLore)."""
    return name in (OptimizerName.GALORE_ADAMW, OptimizerName.GALORE_ADAMW_8BIT)
