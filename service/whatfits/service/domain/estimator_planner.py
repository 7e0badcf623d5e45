"""Answers with the estimator, and with traces made on demand where it has no profile."""

from whatfits.estimator import plan_runs
from whatfits.estimator.catalog import load_gpus, load_models
from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec
from whatfits.service.trace_limits import TraceLimits
from whatfits.service.tracing import OnDemand

__all__ = ["EstimatorPlanner"]

_WARM_UP_QUESTION = PlanRequest(model="galore-llama-60m", hardware="2xa100-80gb", seq_len=256)


class EstimatorPlanner:
    """Answers with the estimator; `limits` are those of a trace that a question needs."""

    def __init__(self, limits: TraceLimits | None = None) -> None:
        self._on_demand = OnDemand(limits)

    def estimate(self, run: RunSpec, *, explain: bool = False) -> Estimate:
        return self._on_demand.estimate(run, explain=explain)

    def plan(self, request: PlanRequest) -> Plan:
        return self._on_demand.plan(request)

    def warm_up(self) -> None:
        """Load catalogs and, by asking a small question, the memory profiles."""
        load_models()
        load_gpus()
        plan_runs(_WARM_UP_QUESTION)
