"""Steps to compare: a run's memory as the estimator composes it, and the same step traced whole."""
