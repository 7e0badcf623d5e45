"""Which optimizers have a rank or quantised states, as far as the rules of a run need to know."""

from typing import Final

from whatfits.estimator.specs.enums import OptimizerName

__all__ = [
    "FACTORED_OPTIMIZERS",
    "QUANTISED_OPTIMIZERS",
    "RANKED_OPTIMIZERS",
    "WHOLE_MATRIX_OPTIMIZERS",
    "rank_is_clipped",
]

RANKED_OPTIMIZERS: Final = frozenset(
    {
        OptimizerName.GALORE_ADAMW,
        OptimizerName.GALORE_ADAMW_8BIT,
        OptimizerName.GALORE_ADAFACTOR,
        OptimizerName.FIRA,
        OptimizerName.LDADAM,
        OptimizerName.SUBTRACK,
        OptimizerName.FRUGAL,
        OptimizerName.APOLLO,
        OptimizerName.APOLLO_MINI,
        OptimizerName.Q_GALORE,
        OptimizerName.Q_APOLLO,
        OptimizerName.Q_APOLLO_MINI,
    }
)
"""Optimizers that project gradients to a rank; FRUGAL, which takes it for its density times the hidden size."""

WHOLE_MATRIX_OPTIMIZERS: Final = RANKED_OPTIMIZERS | {
    OptimizerName.ADAM_MINI,
    OptimizerName.SM3,
    OptimizerName.GWT,
    OptimizerName.MUON,
    OptimizerName.SOAP,
}
"""Optimizers that take whole matrices, or blocks of them; the code modelled does not run on shards."""

FACTORED_OPTIMIZERS: Final = frozenset(
    {OptimizerName.ADAFACTOR, OptimizerName.GALORE_ADAFACTOR, OptimizerName.CAME, OptimizerName.ADALOMO}
)
"""Optimizers that keep sums over rows and columns, modelled for matrices and vectors alone."""

QUANTISED_OPTIMIZERS: Final = frozenset(
    {OptimizerName.ADAMW_8BIT, OptimizerName.PAGED_ADAMW_8BIT, OptimizerName.GALORE_ADAMW_8BIT}
)
"""Optimizers that keep 8-bit states with one scale per block."""


def rank_is_clipped(name: OptimizerName) -> bool:
    """Whether a rank above a matrix's smallest side is cut to that side, as where an SVD has no more vectors."""
    return name in RANKED_OPTIMIZERS - {OptimizerName.APOLLO, OptimizerName.APOLLO_MINI}
