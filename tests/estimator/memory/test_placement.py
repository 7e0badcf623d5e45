"""Placements: DDP's buckets against torch's own assignment, FSDP's buffers by hand."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import _DEFAULT_FIRST_BUCKET_BYTES, _compute_bucket_assignment_by_size

from tests.estimator.memory.steps import make_step
from tests.factories import make_model, make_parallelism
from whatfits.estimator.memory.optimizers import ParameterRole, ParameterTensor
from whatfits.estimator.memory.parameters import HeldParameter
from whatfits.estimator.memory.placement import Placement, ddp_bucket_sizes, fsdp_buffers, placement_of


def torch_buckets(parameters: Sequence[ParameterTensor]) -> list[int]:
    """Bucket sizes as torch.distributed assigns them to parameters in reverse order."""
    tensors = [torch.empty(p.shape, dtype=torch.bfloat16, device="meta") for p in reversed(parameters)]
    buckets, _ = _compute_bucket_assignment_by_size(tensors, [_DEFAULT_FIRST_BUCKET_BYTES, 25 * 2**20])
    return [sum(2 * tensors[j].numel() for j in bucket) for bucket in buckets]


@given(st.lists(st.integers(1, 2**24), min_size=1, max_size=30))
def test_buckets_are_torchs(sizes: list[int]) -> None:
    parameters = [
        ParameterTensor(name=str(j), shape=(n,), role=ParameterRole.vector) for j, n in enumerate(sizes)
    ]

    assert ddp_bucket_sizes(parameters, 2) == torch_buckets(parameters)


def test_buckets_of_a_model_are_torchs_and_hold_every_gradient() -> None:
    model = make_model(num_hidden_layers=6, hidden_size=512, intermediate_size=1376, vocab_size=8000)
    parameters = list(make_step(model).tensors.whole)

    assert ddp_bucket_sizes(parameters, 2) == torch_buckets(parameters)
    assert sum(ddp_bucket_sizes(parameters, 2)) == 2 * model.num_parameters


@pytest.mark.parametrize(
    ("changes", "placement"),
    [
        ({}, Placement.SINGLE),
        ({"dp_replicate_degree": 2}, Placement.DDP),
        ({"dp_replicate_degree": 2, "gradient_as_bucket_view": True}, Placement.DDP_BUCKET_VIEW),
        ({"dp_shard_degree": 2, "zero_stage": 3}, Placement.FSDP),
    ],
)
def test_placement_follows_the_axes(changes: dict[str, object], placement: Placement) -> None:
    assert placement_of(make_parallelism(**changes)) is placement


@pytest.mark.parametrize(("reduce_bytes", "last_frozen"), [(2, False), (4, False), (2, True)])
def test_fsdp_buffers_count_layers_and_root(reduce_bytes: int, last_frozen: bool) -> None:
    def held(name: str, numel: int, trainable: bool = True) -> HeldParameter:
        role = ParameterRole.linear
        return HeldParameter(name=name, shape=(numel,), role=role, element_bytes=2, trainable=trainable)

    parameters = [
        held("model.embed_tokens.weight", 1024),
        held("model.layers.0.a", 512),
        held("model.layers.1.a", 512),
        held("model.layers.1.b", 1, not last_frozen),
    ]

    found = fsdp_buffers(parameters, reduce_bytes=reduce_bytes)

    root, layer = 2048, 1024 + 512
    gradients = 1024 + 512 * reduce_bytes + (0 if last_frozen else 2 * 512)
    assert (found.outside_layers, found.forward_layer, found.backward_layer) == (
        root + layer, root + 2 * layer, root + 2 * layer + gradients
    )  # fmt: skip
