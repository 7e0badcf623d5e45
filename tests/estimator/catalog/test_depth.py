"""A run with fewer layers is the same run of a shallower model."""

import pytest

from tests.factories import make_config, make_run
from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.catalog.depth import run_at_depth
from whatfits.estimator.errors import InputError, UnsupportedError


def test_of_a_catalog_model_its_config_is_cut() -> None:
    whole, _ = resolve_model("llama-7b")
    cut, _ = resolve_model(run_at_depth(make_run(model="llama-7b"), 4).model)

    assert cut.dims == {**whole.dims, "L": 4}


def test_a_config_nobody_traced_is_cut_too() -> None:
    config = make_config(model_type="nosuch", num_hidden_layers=None, n_layer=12)

    assert run_at_depth(make_run(model=config), 3).model == {**config, "n_layer": 3}


def test_the_whole_depth_leaves_the_run_as_it_is() -> None:
    run = make_run(model=make_config(num_hidden_layers=3))

    assert run_at_depth(run, 3) is run


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(
        InputError, match="num_layers: 9 is above the 8 layers of llama-60m; accepted: 1 to 8"
    ):
        run_at_depth(make_run(), 9)


def test_a_config_without_a_depth_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the config of resnet-50 has none of num_hidden_layers"):
        run_at_depth(make_run(model="resnet-50"), 1)
