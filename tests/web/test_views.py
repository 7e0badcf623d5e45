"""The verdict in one sentence, counted from the plan."""

import pytest

from tests.fakes import FakePlanner
from whatfits.estimator.specs import PlanRequest
from whatfits.web.answers import Candidate, Optimizer, Plan
from whatfits.web.forms import PlanForm
from whatfits.web.view_models import Catalog
from whatfits.web.views import build_plan_page

CATALOG = Catalog(models=(), gpus=(), optimizers=(Optimizer(name="adamw", title="AdamW"),))


@pytest.fixture
def plan() -> Plan:
    answered = FakePlanner().plan(PlanRequest(model="llama-13b", hardware="8xa100-80gb"))
    return Plan.model_validate_json(answered.model_dump_json())


def headline_of(plan: Plan) -> str:
    answer = build_plan_page(PlanForm(), CATALOG, plan).answer
    assert answer is not None
    return answer.headline


def change_training(candidate: Candidate, **changes: object) -> Candidate:
    training = candidate.spec.training.model_copy(update=changes)
    return candidate.model_copy(update={"spec": candidate.spec.model_copy(update={"training": training})})


def change_placement(candidate: Candidate, **changes: object) -> Candidate:
    axes = candidate.spec.parallelism.model_copy(update=changes)
    return candidate.model_copy(update={"spec": candidate.spec.model_copy(update={"parallelism": axes})})


def test_another_batch_or_checkpointing_is_the_same_choice(plan: Plan) -> None:
    first = plan.candidates[0]
    again = change_training(first, micro_batch_size=1, activation_checkpointing="none")

    longer = plan.model_copy(update={"candidates": (*plan.candidates, again)})

    assert "3 of 5 choices fit (1 of them perhaps)" in headline_of(plan)
    assert headline_of(longer) == headline_of(plan)


def test_another_implementation_or_placement_is_another_choice(plan: Plan) -> None:
    first = plan.candidates[0]
    fused = first.spec.training.optimizer.model_copy(update={"implementation": "fused"})
    others = (
        change_training(first, optimizer=fused),
        change_training(first, layerwise_update=True),
        change_placement(first, gradient_as_bucket_view=True),
    )

    longer = plan.model_copy(update={"candidates": (*plan.candidates, *others)})

    assert "6 of 8 choices fit (1 of them perhaps)" in headline_of(longer)


def test_a_choice_that_fits_for_certain_at_one_batch_is_not_a_perhaps(plan: Plan) -> None:
    unsure = plan.candidates[2]
    certain = unsure.model_copy(update={"estimate": unsure.estimate.model_copy(update={"fits": "yes"})})

    longer = plan.model_copy(update={"candidates": (*plan.candidates, certain)})

    assert "3 of 5 choices fit;" in headline_of(longer)


def test_the_first_choice_is_named_with_its_setting(plan: Plan) -> None:
    first = plan.candidates[0]
    fused = first.spec.training.optimizer.model_copy(update={"implementation": "fused"})
    only = plan.model_copy(update={"candidates": (change_training(first, optimizer=fused),)})

    assert headline_of(only).endswith("fastest: AdamW fused, FSDP x8.")
