"""A matrix is every combination of its axes; each goes through validation."""

import pytest
from pydantic import ValidationError

from tests.factories import make_measure_request
from whatfits.estimator.specs.campaign import CampaignMatrix, with_changes


def test_a_matrix_without_axes_is_its_base() -> None:
    base = make_measure_request()

    assert CampaignMatrix(base=base).requests() == (base,)


def test_every_combination_is_there_once_and_ranks_are_for_methods_that_have_one() -> None:
    matrix = CampaignMatrix.model_validate(
        {
            "base": make_measure_request(num_layers=4),
            "models": ["llama-60m", "llama-130m"],
            "optimizers": ["adamw", "galore_adamw", "apollo_mini"],
            "ranks": [32, 64],
            "micro_batch_sizes": [1, 2, 4],
            "precisions": ["bf16", "fp32"],
        }
    )

    requests = matrix.requests()

    optimizers = [(r.spec.training.optimizer.name, r.spec.training.optimizer.rank) for r in requests]
    assert len(requests) == 2 * 4 * 3 * 2
    assert len({request.model_dump_json() for request in requests}) == len(requests)
    assert set(optimizers) == {
        ("adamw", None),
        ("galore_adamw", 32),
        ("galore_adamw", 64),
        ("apollo_mini", None),
    }
    assert {request.num_layers for request in requests} == {4}
    assert {request.spec.training.seq_len for request in requests} == {128}


def test_ranks_alone_vary_the_base_s_optimizer() -> None:
    base = make_measure_request(
        spec={"training": {"optimizer": {"name": "fira", "projection_update_interval": 9}}}
    )

    found = [r.spec.training.optimizer for r in CampaignMatrix(base=base, ranks=(4, 8)).requests()]

    assert [(o.name, o.rank, o.projection_update_interval) for o in found] == [("fira", 4, 9), ("fira", 8, 9)]


def test_defaults_stay_unset_so_that_resolving_fills_them_in() -> None:
    changed = with_changes(make_measure_request(), micro_batch_size=3)

    assert changed.spec.training.model_fields_set == {"seq_len", "micro_batch_size"}


def test_a_change_that_no_spec_takes_is_refused() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size"):
        with_changes(make_measure_request(), micro_batch_size=0)
