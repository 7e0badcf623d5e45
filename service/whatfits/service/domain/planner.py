"""Who answers: the seam between the API and the estimator."""

from typing import Protocol

from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec

__all__ = ["Planner"]


class Planner(Protocol):
    """Answers the two questions of the API."""

    def estimate(self, run: RunSpec, *, explain: bool = False) -> Estimate:
        """The estimate of one run, with the live set of its peak if that is to be explained."""
        ...

    def plan(self, request: PlanRequest) -> Plan:
        """The ranked plan for a budget."""
        ...

    def warm_up(self) -> None:
        """Load what the first question would otherwise wait for."""
        ...
