"""What parameters are taken for, and what `build_optimizer` refuses."""

import pytest
import torch
from torch import nn

from tests.optim_impls.models import SmallModel, make_model, train
from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.roles import split_by_role

CPU = torch.device("cpu")


def names_by_role(source: object) -> dict[str, list[str]]:
    return {group["role"]: group["param_names"] for group in split_by_role(source)}  # type: ignore[arg-type]


def test_roles_of_a_model() -> None:
    roles = names_by_role(SmallModel())

    assert roles["embedding"] == ["embed_tokens.weight"]
    assert roles["head"] == ["lm_head.weight"]
    assert roles["matrix"] == [
        f"layers.{i}.{name}.weight" for i in (0, 1) for name in ("q_proj", "up", "down")
    ]
    assert roles["vector"] == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("down.bias", "norm.weight", "norm.bias")
    ]


def test_roles_by_names_are_those_of_the_model() -> None:
    model = SmallModel()

    assert names_by_role(model.named_parameters()) == names_by_role(model)


def test_a_weight_that_embedding_and_head_share_comes_once_as_the_head() -> None:
    roles = names_by_role(SmallModel(tied=True))

    assert "embedding" not in roles
    assert roles["head"] == ["embed_tokens.weight"]


def test_the_head_is_what_the_model_says_it_is() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 8, bias=False)
            self.to_logits = nn.Linear(8, 32, bias=False)

        def get_output_embeddings(self) -> nn.Module:
            return self.to_logits

    assert names_by_role(Named()) == {"matrix": ["body.weight"], "head": ["to_logits.weight"]}


def test_more_than_two_dimensions_are_a_vector_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, bias=False), nn.Linear(4, 4))
    model[1].weight.requires_grad_(False)

    assert names_by_role(model) == {"vector": ["0.weight", "1.bias"]}


def test_an_inner_module_called_output_is_no_head() -> None:
    pairs = [("attention.output.dense.weight", nn.Parameter(torch.zeros(4, 4)))]

    assert names_by_role(pairs) == {"matrix": ["attention.output.dense.weight"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamww"}, r"optimizer 'adamww' is unknown; accepted: .*adamw.*; did you mean adamw\?"),
        ({"name": "adamw", "lrate": 1}, r"lrate is no hyper-parameter of adamw; accepted: lr, betas, .*"),
        (
            {"name": "adamw", "implementation": "fast"},
            "implementation is 'fast'; accepted: for_loop, foreach, fused",
        ),
        ({"name": "adamw", "grad_accum_steps": 0}, "grad_accum_steps is 0; accepted: 1 and more"),
        ({"name": "adamw", "max_grad_norm": 0.0}, "max_grad_norm is 0.0; accepted: None or a number above 0"),
        (
            {"name": "adamw", "layerwise": True, "grad_accum_steps": 4},
            "grad_accum_steps is 4, but a layer-wise update frees each gradient",
        ),
        (
            {"name": "adamw", "layerwise": True, "max_grad_norm": 1.0},
            "max_grad_norm is 1.0, but the norm of all gradients is not known",
        ),
        (
            {"name": "adam_mini", "layerwise": True, "num_heads": 4, "hidden_size": 64},
            "layerwise is True; accepted by adam_mini: False. Lists of parameters",
        ),
        ({"name": "adam_mini"}, "num_heads is None; accepted by adam_mini: the model's num_heads"),
        ({"name": "lomo"}, "layerwise is False; accepted by lomo: True. Each parameter is updated inside"),
        ({"name": "lomo", "layerwise": True, "grad_accum_steps": 2}, "grad_accum_steps is 2"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_with_the_reason(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(model_or_named_parameters=SmallModel(), **arguments)  # type: ignore[arg-type]


def test_a_dtype_the_method_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"q_proj.weight is torch.float64; accepted by lamb: torch.float32"):
        build_optimizer("lamb", make_model(CPU, torch.float64))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="model_or_named_parameters has no trainable parameter"):
        build_optimizer("adamw", nn.Linear(2, 2).requires_grad_(False))


def test_a_paged_optimizer_on_the_cpu_says_that_it_needs_cuda() -> None:
    with pytest.raises(ValueError, match="parameters are on cpu; accepted by PagedAdamW: cuda"):
        build_optimizer("paged_adamw", SmallModel())


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "schedulefree", None)

    with pytest.raises(ImportError, match=r"pip install 'whatfits\[optimizers\]'"):
        build_optimizer("schedule_free_adamw", SmallModel())


def test_pairs_of_names_and_parameters_train_like_their_model(device: torch.device) -> None:
    model, same = (make_model(device) for _ in range(2))

    losses = train(model, build_optimizer("adamw", model, lr=3e-3), range(3))

    assert losses == train(same, build_optimizer("adamw", same.named_parameters(), lr=3e-3), range(3))


def test_in_one_group_parameters_stand_in_the_models_order() -> None:
    model = make_model(CPU)

    (group,) = build_optimizer("adamw", model, one_group=True).param_groups

    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_one_group_is_refused_for_a_method_that_tells_roles_apart() -> None:
    with pytest.raises(ValueError, match="one_group is True; accepted by galore_adamw: False"):
        build_optimizer("galore_adamw", make_model(CPU), one_group=True)
