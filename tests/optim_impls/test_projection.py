"""Projections: exact, randomised and warm directions capture what they should; draws are as the paper has them."""

import pytest
import torch

from whatfits.optim_impls.projection import PROJECTORS, draw_random, low_rank_of, seeded_generator, tall

SHAPES = [(60, 200), (200, 60), (80, 80)]


def decaying(shape: tuple[int, int]) -> torch.Tensor:
    """Singular values 1, 1/4, 1/9, ..."""
    torch.manual_seed(0)
    side = min(shape)
    u, v = (torch.linalg.qr(torch.randn(n, side))[0] for n in shape)
    matrix: torch.Tensor = (u / torch.arange(1, side + 1) ** 2) @ v.T
    return matrix


@pytest.mark.parametrize("subspace", PROJECTORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_orthonormal_and_keep_what_the_best_ones_keep(
    subspace: str, shape: tuple[int, int], device: torch.device
) -> None:
    grad = decaying(shape)
    out = torch.empty(0, device=device)
    for draw in range(3):
        generator = seeded_generator(0, 0, draw, device)
        out = PROJECTORS[subspace](grad.to(device), 5, generator, last=out if draw else None)
    p = out.cpu()
    best = torch.linalg.svdvals(grad)[:5].norm()

    torch.testing.assert_close(p @ p.T, torch.eye(5), rtol=0, atol=1e-4)
    assert (tall(grad) @ p.T).norm() > 0.9999 * best


@pytest.mark.parametrize("subspace", ["svd", "randomised"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_directions_come_in_the_order_of_singular_values(subspace: str, shape: tuple[int, int]) -> None:
    grad = decaying(shape)
    out = PROJECTORS[subspace](grad, 4, torch.Generator().manual_seed(0), last=None)

    torch.testing.assert_close(
        torch.linalg.vector_norm(tall(grad) @ out.T, dim=0), torch.linalg.svdvals(grad)[:4], rtol=1e-3, atol=0
    )


def test_a_draw_has_the_variance_of_one_over_the_rank(device: torch.device) -> None:
    p = torch.empty(16, 5000, device=device)
    draw_random(p, seeded_generator(0, 0, 0, device), rank=p.shape[0])

    assert abs(float(p.var()) * 16 - 1) < 0.02


@pytest.mark.parametrize("changed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seeds_parameters_and_draws_have_numbers_of_their_own(
    changed: tuple[int, int, int], device: torch.device
) -> None:
    first, again, other = (torch.empty(4, 8, device=device) for _ in range(3))
    draw_random(first, seeded_generator(0, 0, 0, device), rank=first.shape[0])
    draw_random(again, seeded_generator(0, 0, 0, device), rank=again.shape[0])
    draw_random(other, seeded_generator(*changed, device), rank=other.shape[0])

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_rank_is_cut_to_the_shorter_side_of_an_svd_alone() -> None:
    assert low_rank_of((7, 30), 10).projection_shape == (7, 7)
    assert low_rank_of((7, 30), 10, clips=False).projection_shape == (10, 7)
