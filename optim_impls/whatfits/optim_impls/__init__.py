"""Optimizer implementations on torch: the place for one file per method behind one registry.

The portion is reserved and empty: the optimizers come with their own release. What an optimizer costs is already
answered by `whatfits.estimator`, which needs none of this code.
"""

__all__: list[str] = []
