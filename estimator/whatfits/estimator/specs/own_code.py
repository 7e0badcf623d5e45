"""Which optimizers have code of their own here beside the published one, as far as the rules of a run need to know."""

from typing import Final

from whatfits.estimator.specs.enums import OptimizerName

__all__ = ["OWN_CODE_OPTIMIZERS"]

OWN_CODE_OPTIMIZERS: Final[frozenset[OptimizerName]] = frozenset(
    {
        OptimizerName.ADAMW_8BIT,
        OptimizerName.LION,
        OptimizerName.ADAN,
        OptimizerName.SOPHIA,
        OptimizerName.FRUGAL,
        OptimizerName.GALORE_ADAMW,
        OptimizerName.GALORE_ADAMW_8BIT,
        OptimizerName.GALORE_ADAFACTOR,
        OptimizerName.FIRA,
        OptimizerName.APOLLO,
        OptimizerName.APOLLO_MINI,
    }
)
"""Optimizers that take `implementation: whatfits`: one program for the published code, one for `whatfits.optim_impls`.

Methods that only `whatfits.optim_impls` has are not among them: for those there is one program and no choice.
"""
