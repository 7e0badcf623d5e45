"""Estimate and plan training memory and time: numbers in, numbers out, no torch.

`estimate_run` answers one run, `plan_runs` searches for what fits a budget.
"""

from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.recommend import plan_runs

__all__ = ["estimate_run", "plan_runs"]
