"""The recommender: candidates, search over arrays, ranking and reasons."""

from whatfits.estimator.recommend.plan import plan_runs

__all__ = ["plan_runs"]
