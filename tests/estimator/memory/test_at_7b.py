"""What optimizers cost on LLaMA-7B, against numbers worked out by hand."""

import pytest

from whatfits.estimator.memory.at_7b import cost_at_7b, llama_7b_parameters
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.specs import OptimizerName

PARAMETERS = 6_738_415_616
LINEAR = 6_476_005_376


def test_the_model_has_the_parameters_of_the_paper() -> None:
    """arXiv:2302.13971, Table 2: 6.7B."""
    assert sum(parameter.numel for parameter in llama_7b_parameters()) == PARAMETERS
    assert sum(p.numel for p in llama_7b_parameters() if p.role.value == "linear") == LINEAR


@pytest.mark.parametrize(
    ("name", "per_parameter"),
    [
        (OptimizerName.SGD, 0.0),
        (OptimizerName.ADAMW, 4.0),
        (OptimizerName.PAGED_ADAMW, 8.0),
        (OptimizerName.ADAMW_8BIT, 2 + 8 / 256),
        (OptimizerName.LION, 2.0),
        # One of 32 layers: three fp32 tensors each.
        (OptimizerName.BADAM, 12 * (LINEAR / 32) / PARAMETERS),
    ],
)
def test_bytes_of_state_a_parameter(name: OptimizerName, per_parameter: float) -> None:
    assert cost_at_7b(name).state_bytes_per_parameter == pytest.approx(per_parameter, rel=1e-3)


def test_lists_of_square_roots_are_as_large_as_the_weights() -> None:
    """torch/optim/adam.py, `_multi_tensor_adam`."""
    assert cost_at_7b(OptimizerName.ADAMW).step_bytes == 2 * PARAMETERS


@pytest.mark.parametrize("name", [OptimizerName(name) for name in OPTIMIZERS])
def test_every_optimizer_has_a_cost(name: OptimizerName) -> None:
    cost = cost_at_7b(name)

    assert 0 <= cost.state_bytes_per_parameter <= 16
    assert cost.num_parameters == PARAMETERS
    # A library's refresh may skip its update of moments, never much else.
    assert 0 <= cost.step_bytes < 8 * PARAMETERS
    assert 0 <= cost.refresh_bytes < 8 * PARAMETERS
