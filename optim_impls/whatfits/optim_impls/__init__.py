"""Optimizers on torch: one file per method, libraries' optimizers behind adapters, one registry for all.

`build_optimizer` makes any of them from a name and a model; `REGISTRY` says what each is and which bytes it holds.
"""

from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.layerwise import LayerwiseOptimizer
from whatfits.optim_impls.registry import REGISTRY

__all__ = ["REGISTRY", "LayerwiseOptimizer", "build_optimizer"]
