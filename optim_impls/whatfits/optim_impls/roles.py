"""Which parameter is what to the model: embedding, output head, matrix of a linear layer, or vector.

Low-rank and whole-matrix methods treat the matrices inside the model only, as their papers do (GaLore arXiv:2403.03507
section 5, APOLLO arXiv:2412.05270 section 5): embeddings, head and vectors go to AdamW.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from whatfits.optim_impls.declare import Role

__all__ = ["ParameterSource", "split_by_role"]

ParameterSource = nn.Module | Iterable[tuple[str, Tensor]]
"""A model, or pairs of name and parameter as ``model.named_parameters()`` gives them."""

_EMBEDDING_NAMES = ("embed", "wte", "wpe")
"""Beginnings of the names of embeddings' modules."""
_HEAD_NAMES = frozenset({"lm_head", "output", "head", "classifier", "score", "embed_out"})
"""Names of modules that turn hidden states into the model's output. They own the weight themselves: BERT's
`attention.output.dense.weight` is a matrix."""


def split_by_role(source: ParameterSource) -> list[dict[str, Any]]:
    """Parameter groups with the keys `params`, `param_names` and `role`, one per role that occurs.

    Each parameter comes once, under its first name, however many modules share it; frozen ones do not come. Weights
    shared by embedding and head are the head's.

    Raises:
        ValueError: there is nothing to train.
    """
    roles = _roles_in_model(source) if isinstance(source, nn.Module) else _roles_by_name(source)
    groups: dict[Role, dict[str, Any]] = {
        role: {"params": [], "param_names": [], "role": role.value} for role in Role
    }
    seen: set[int] = set()
    for name, parameter, role in roles:
        if id(parameter) not in seen and parameter.requires_grad:
            seen.add(id(parameter))
            groups[role]["params"].append(parameter)
            groups[role]["param_names"].append(name)
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise ValueError("model_or_named_parameters has no trainable parameter; accepted: at least one")
    return found


def _roles_in_model(model: nn.Module) -> Iterator[tuple[str, Tensor, Role]]:
    heads = _head_weights(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if len(parameter.shape) != 2:
            yield name, parameter, Role.VECTOR
        elif id(parameter) in heads:
            yield name, parameter, Role.HEAD
        elif id(parameter) in embeddings:
            yield name, parameter, Role.EMBEDDING
        else:
            yield name, parameter, Role.MATRIX


def _head_weights(model: nn.Module) -> set[int]:
    """Weights of the output head: what the model itself calls so (transformers), and linear layers with a head's name."""
    found = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _HEAD_NAMES
    }
    output = getattr(model, "get_output_embeddings", None)
    module = output() if callable(output) else None
    if isinstance(weight := getattr(module, "weight", None), Tensor):
        found.add(id(weight))
    return found


def _roles_by_name(pairs: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor, Role]]:
    for name, parameter in pairs:
        parts = name.split(".")
        owner = parts[-2] if len(parts) > 1 else parts[-1]
        if len(parameter.shape) != 2:
            yield name, parameter, Role.VECTOR
        elif owner in _HEAD_NAMES:
            yield name, parameter, Role.HEAD
        elif owner.startswith(_EMBEDDING_NAMES) or owner.endswith(
            ("_embedding", "_embeddings", "embed_tokens")
        ):
            yield name, parameter, Role.EMBEDDING
        else:
            yield name, parameter, Role.MATRIX
