"""Answers with the estimator."""

from whatfits.estimator import estimate_run, plan_runs
from whatfits.estimator.catalog import load_gpus, load_models
from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec

__all__ = ["EstimatorPlanner"]

_WARM_UP_QUESTION = PlanRequest(model="galore-llama-60m", hardware="2xa100-80gb", seq_len=256)


class EstimatorPlanner:
    """Answers with the estimator."""

    def estimate(self, run: RunSpec, *, explain: bool = False) -> Estimate:
        return estimate_run(run, explain=explain)

    def plan(self, request: PlanRequest) -> Plan:
        return plan_runs(request)

    def warm_up(self) -> None:
        """Load catalogs and, by asking a small question, the memory profiles."""
        load_models()
        load_gpus()
        plan_runs(_WARM_UP_QUESTION)
