"""The tensors of one rank against the model code's own."""

import pytest

from tests.estimator.memory.steps import make_step
from tests.factories import make_model
from whatfits.estimator.catalog import load_models
from whatfits.estimator.memory.optimizers import ParameterRole
from whatfits.estimator.memory.parameters import (
    HeldParameter,
    build_parameters,
    parameter_bytes,
    shard_parameters,
)
from whatfits.estimator.profile import ParameterTemplate, SizeExpression


@pytest.mark.parametrize("tied", [False, True])
def test_names_shapes_and_order_are_those_of_the_model(tied: bool) -> None:
    from whatfits.profiler.trace.model import build_model
    from whatfits.profiler.trace.options import StepOptions

    model = make_model(num_hidden_layers=5, tie_word_embeddings=tied)
    real = build_model(model.dims, StepOptions(tie_embeddings=tied))

    ours = [(p.name, p.shape) for p in make_step(model).tensors.whole]
    assert ours == [(name, tuple(p.shape)) for name, p in real.named_parameters()]


@pytest.mark.parametrize(
    "name", [name for name, m in load_models().items() if m.num_layers >= 4 and m.config is None]
)
def test_parameters_add_up_to_the_catalog(name: str) -> None:
    model = load_models()[name]

    assert sum(p.numel for p in make_step(model).tensors.whole) == model.num_parameters


@pytest.mark.parametrize(("degree", "rows"), [(1, 10), (2, 5), (3, 4), (8, 2), (16, 1)])
def test_shards_split_the_first_dimension_and_round_up(degree: int, rows: int) -> None:
    ten_rows = [HeldParameter(name="p", shape=(10, 7), role=ParameterRole.linear, element_bytes=2)]

    assert [p.shape for p in shard_parameters(ten_rows, degree)] == [(rows, 7)]


def test_each_tensor_is_rounded_by_itself_in_its_own_dtype() -> None:
    role = ParameterRole.vector
    tensors = [
        HeldParameter(name=str(e), shape=(200,), role=role, element_bytes=e, trainable=e > 1)
        for e in (1, 2, 4)
    ]

    assert parameter_bytes(tensors) == 512 + 512 + 1024
    assert parameter_bytes(tensors, 4) == 3 * 1024


def test_dtype_and_what_trains_come_from_the_template() -> None:
    one = SizeExpression(((1, ()),))
    rank = SizeExpression(((1, (("r", 1),)),))
    templates = (
        ParameterTemplate("layers.*.weight", (one,), "linear", 1, trainable=False),
        ParameterTemplate("layers.*.lora_A", (rank,), "linear", 4),
    )

    found = build_parameters(templates, {"L": 2, "r": 7})

    assert [(p.name, p.shape, p.nbytes, p.trainable) for p in found] == [
        ("layers.0.weight", (1,), 1, False),
        ("layers.0.lora_A", (7,), 28, True),
        ("layers.1.weight", (1,), 1, False),
        ("layers.1.lora_A", (7,), 28, True),
    ]
