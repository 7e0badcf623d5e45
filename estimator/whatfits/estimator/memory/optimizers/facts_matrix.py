"""The methods that treat a matrix as a whole, or by its rows, without a low-rank projection."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.facts import OptimizerFacts
from whatfits.estimator.specs import OptimizerName

__all__ = ["MATRIX"]

MATRIX: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType({})
