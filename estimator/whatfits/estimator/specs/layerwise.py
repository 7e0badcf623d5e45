"""Which optimizers can only, and which cannot, update each parameter inside the backward pass, or train a part."""

from typing import Final

from whatfits.estimator.specs.enums import OptimizerName

__all__ = [
    "FORWARD_ONLY_OPTIMIZERS",
    "IN_BACKWARD_OPTIMIZERS",
    "ONE_LAYER_OPTIMIZERS",
    "WHOLE_STEP_OPTIMIZERS",
]

IN_BACKWARD_OPTIMIZERS: Final = frozenset({OptimizerName.LOMO, OptimizerName.ADALOMO})
"""Optimizers that are fused into the backward pass; for them `layerwise_update` is true unless it is given."""

FORWARD_ONLY_OPTIMIZERS: Final = frozenset({OptimizerName.MEZO})
"""Optimizers without a backward pass: no gradients, no stored activations, which no profile of a run lacks yet."""

ONE_LAYER_OPTIMIZERS: Final = frozenset({OptimizerName.BADAM})
"""Optimizers that train one layer at a time and freeze the rest."""

WHOLE_STEP_OPTIMIZERS: Final = frozenset(
    {
        OptimizerName.SOPHIA,
        OptimizerName.BADAM,
        OptimizerName.FRUGAL,
        OptimizerName.ADAM_MINI,
        OptimizerName.MEZO,
    }
)
"""Optimizers without a layer-wise form: their code needs gradients for more than their own parameter's update, or has none."""
