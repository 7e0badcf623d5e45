"""Plans: what is shown, in which order, and what is said of the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator import plan_runs
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.profile import MissingProfileError
from whatfits.estimator.recommend.rank import pareto_front
from whatfits.estimator.specs import Candidate, Objective, OptimizerName, Plan, PlanRequest, Verdict
from whatfits.estimator.specs.layerwise import (
    FORWARD_ONLY_OPTIMIZERS,
    IN_BACKWARD_OPTIMIZERS,
    ONE_LAYER_OPTIMIZERS,
)


def plan(model: str, gpus: str, **asked: object) -> Plan:
    return plan_runs(PlanRequest.model_validate({"model": model, "hardware": gpus, **asked}))


def test_a_model_whose_step_time_is_not_known_is_refused_before_a_profile_is_missed() -> None:
    with pytest.raises(UnsupportedError, match="step time of Mamba2ForCausalLM is not modelled") as refused:
        plan("mamba2-130m", "h100")
    assert not isinstance(refused.value, MissingProfileError)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=30))
def test_the_pareto_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    speed, memory = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    expected = [not any((s >= a and m <= b) and (s > a or m < b) for s, m in pairs) for a, b in pairs]
    assert pareto_front(speed, memory).tolist() == expected


@pytest.mark.parametrize("gpus", ["8xa100-80gb", "rtx-4090", "2x8xh100"])
def test_every_optimizer_is_shown_or_rejected_with_a_reason(gpus: str) -> None:
    answer = plan("llama-7b", gpus, limit=1)
    shown = {c.spec.training.optimizer.name for c in answer.candidates}
    rejected = {r.optimizer for r in answer.rejected}
    assert shown | rejected == set(OPTIMIZERS)
    otherwise = {r.optimizer: r.why for r in answer.rejected if not r.why.startswith("Even micro-batch")}
    on_one_gpu = IN_BACKWARD_OPTIMIZERS | ONE_LAYER_OPTIMIZERS
    assert set(otherwise) == FORWARD_ONLY_OPTIMIZERS | (set() if gpus == "rtx-4090" else on_one_gpu)


def test_an_optimizer_that_runs_on_one_gpu_alone_is_refused_on_several() -> None:
    with pytest.raises(UnsupportedError, match="lomo cannot run on 8 GPUs"):
        plan("llama-7b", "8xa100-80gb", optimizers=["lomo"])


def test_certain_fits_come_first_and_each_group_is_in_order_of_speed() -> None:
    answer = plan("llama-13b", "8xa100-80gb", limit=200)
    order = [(c.estimate.fits is not Verdict.YES, -speed(c)) for c in answer.candidates]
    assert order == sorted(order)
    assert {c.estimate.fits for c in answer.candidates} == {Verdict.YES, Verdict.UNCERTAIN}


def test_the_memory_objective_orders_by_device_bytes() -> None:
    answer = plan("llama-7b", "8xa100-80gb", objective=Objective.MEMORY, limit=200)
    certain = [c for c in answer.candidates if c.estimate.fits is Verdict.YES]
    medians = [c.estimate.memory.device_bytes.median for c in certain]
    assert medians == sorted(medians)
    assert "Least memory of all that fit." in certain[0].reasons


def speed(candidate: Candidate) -> float:
    """Tokens per second of a candidate, which plans are ranked by."""
    assert candidate.estimate.time is not None
    return candidate.estimate.time.tokens_per_second


def test_exactly_one_candidate_is_called_the_fastest_and_none_is_faster() -> None:
    answer = plan("llama-7b", "8xa100-80gb", limit=1000)
    named = [c for c in answer.candidates if "Fastest of all that fit." in c.reasons]
    certain = [speed(c) for c in answer.candidates if c.estimate.fits is Verdict.YES]
    assert [speed(c) for c in named] == [max(certain)]


def test_a_global_batch_is_met_by_every_candidate() -> None:
    answer = plan("llama-7b", "8xa100-80gb", seq_len=512, global_batch_size=96, limit=200)
    products = {
        c.spec.training.micro_batch_size * c.spec.training.grad_accum_steps * c.spec.parallelism.dp_degree
        for c in answer.candidates
    }
    assert products == {96}


def test_a_low_rank_method_is_planned_at_every_rank_asked_for() -> None:
    answer = plan("llama-7b", "8xa100-80gb", optimizers=["apollo"], ranks=[64, 512], limit=200)
    assert {c.spec.training.optimizer.rank for c in answer.candidates} == {64, 512}


def test_the_change_named_for_ddp_really_fits() -> None:
    answer = plan("llama-13b", "8xa100-80gb")
    apollo = next(r for r in answer.rejected if r.optimizer is OptimizerName.APOLLO and r.placement == "DDP")
    assert apollo.smallest_change_that_fits is not None
    assert apollo.smallest_change_that_fits.startswith("Use DDP with gradient_as_bucket_view: ")
    assert any(
        c.spec.training.optimizer.name is OptimizerName.APOLLO and c.spec.parallelism.gradient_as_bucket_view
        for c in answer.candidates
    )


def test_what_speed_does_not_show_is_said_of_methods_that_train_a_part_or_lack_a_second_moment() -> None:
    answer = plan("llama-1b", "rtx-4090", limit=200)
    cautioned = {
        c.spec.training.optimizer.name
        for c in answer.candidates
        if any("one layer at a time" in r or "second moment" in r for r in c.reasons)
    }
    assert cautioned == {OptimizerName.BADAM, OptimizerName.SGD, OptimizerName.SGDM, OptimizerName.LOMO}
