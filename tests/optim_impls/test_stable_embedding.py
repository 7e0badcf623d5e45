"""StableEmbedding: bitsandbytes' forward pass and initialisation, and 32-bit states."""

import bitsandbytes
import pytest
import torch

from whatfits.optim_impls.blockwise_8bit import Blockwise8bit
from whatfits.optim_impls.stable_embedding import StableEmbedding, wants_fp32_states


def test_forward_is_a_layer_norm_of_the_embedding(device: torch.device) -> None:
    torch.manual_seed(0)
    ours = StableEmbedding(100, 48, padding_idx=3, device=device)
    torch.manual_seed(0)
    theirs = bitsandbytes.nn.StableEmbedding(100, 48, padding_idx=3, device=device)
    tokens = torch.tensor([[1, 2, 3], [4, 99, 1]], device=device)

    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.weight[3], torch.zeros(48, device=device))
    assert torch.equal(ours(tokens), theirs(tokens))


def test_weights_are_within_the_bound_of_xavier(device: torch.device) -> None:
    embedding = StableEmbedding(1000, 200, device=device)
    bound = (6 / 1200) ** 0.5

    assert 0.99 * bound < embedding.weight.abs().max() <= bound


def test_states_are_fp32_and_those_of_other_embeddings_are_not(device: torch.device) -> None:
    stable = StableEmbedding(500, 32, device=device, dtype=torch.bfloat16)
    plain = torch.nn.Embedding(500, 32, device=device, dtype=torch.bfloat16)
    optimizer = Blockwise8bit([stable.weight, plain.weight], method="adamw")
    for weight in (stable.weight, plain.weight):
        weight.grad = torch.ones_like(weight)
    optimizer.step()

    assert optimizer.state[stable.weight]["exp_avg"].dtype is torch.float32
    assert optimizer.state[plain.weight]["exp_avg"].dtype is torch.uint8


def test_a_copy_is_marked_anew() -> None:
    embedding = StableEmbedding(10, 4)
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    assert not wants_fp32_states(embedding.weight)

    embedding.mark()

    assert wants_fp32_states(embedding.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norm_has_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    embedding = StableEmbedding(10, 4, dtype=dtype)

    assert embedding(torch.tensor([1])).dtype is dtype
