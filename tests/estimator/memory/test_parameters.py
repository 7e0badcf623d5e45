"""The tensors of one rank against the model code's own."""

import pytest

from tests.estimator.memory.steps import make_step
from tests.factories import make_model
from whatfits.estimator.catalog import load_models
from whatfits.estimator.memory.parameters import parameter_bytes, shard_parameters


@pytest.mark.parametrize("tied", [False, True])
def test_names_shapes_and_order_are_those_of_the_model(tied: bool) -> None:
    from whatfits.profiler.trace.model import build_model
    from whatfits.profiler.trace.options import StepOptions

    model = make_model(num_hidden_layers=5, tie_word_embeddings=tied)
    real = build_model(model.dims, StepOptions(tie_embeddings=tied))

    ours = [(p.name, p.shape) for p in make_step(model).tensors.whole]
    assert ours == [(name, tuple(p.shape)) for name, p in real.named_parameters()]


@pytest.mark.parametrize("name", [name for name, m in load_models().items() if m.num_layers >= 4])
def test_parameters_add_up_to_the_catalog(name: str) -> None:
    model = load_models()[name]

    assert sum(p.numel for p in make_step(model).tensors.whole) == model.num_parameters


@pytest.mark.parametrize(("degree", "rows"), [(1, 10), (2, 5), (3, 4), (8, 2), (16, 1)])
def test_shards_split_the_first_dimension_and_round_up(degree: int, rows: int) -> None:
    whole = [p for p in make_step(make_model(num_hidden_layers=4)).tensors.whole if len(p.shape) == 2][:1]
    ten_rows = [type(whole[0])(name="p", shape=(10, 7), role=whole[0].role)]

    assert [p.shape for p in shard_parameters(ten_rows, degree)] == [(rows, 7)]


def test_each_gradient_is_rounded_by_itself() -> None:
    parameter = make_step(make_model(num_hidden_layers=4)).tensors.whole[0]
    tiny = [type(parameter)(name=str(j), shape=(1,), role=parameter.role) for j in range(3)]

    assert parameter_bytes(tiny, 2) == 3 * 512
