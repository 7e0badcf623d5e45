"""How FRUGAL divides a matrix into a part with state and a part without, and the update of each.

Philip Zmushko et al.: FRUGAL, arXiv:2411.07837, Algorithm 1 and section 3: whole tensors in turn (`block`), some
columns, some elements, or a subspace of rank r, random or of the gradient's singular vectors. State-full: AdamW.
"""

from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.adamw import fused_adamw
from whatfits.optim_impls.chunks import chunks, row_chunks, rows_per_chunk, scratch_for, signs_into

__all__ = [
    "PROJECTED_SPLITS",
    "SPLITS",
    "STATE_FREE",
    "choose_part",
    "split_rank",
    "state_free_update",
    "update_columns",
    "update_elements",
    "update_projected",
]

SPLITS = ("block", "columns", "elements", "random", "svd")
PROJECTED_SPLITS = ("random", "svd")
STATE_FREE = ("sign", "sgd", "none")


def split_rank(shape: tuple[int, ...], density: float) -> int:
    """Rank of a projected split: density x shorter side, rounded, at least 1."""
    return max(1, round(min(shape) * density))


def state_free_update(
    param: Tensor,
    grad: Tensor,
    scratch: Tensor | None,
    *,
    lr: float,
    rule: str,
    weight_decay: float,
    decay_lr: float,
) -> None:
    """In place, p <- (1 - decay_lr wd) p - lr sign(g), or - lr g. All tensors have one shape; sign needs scratch."""
    if weight_decay:
        param.mul_(1 - decay_lr * weight_decay)
    if rule == "sign":
        assert scratch is not None
        param.add_(scratch, alpha=-lr * signs_into(scratch, grad, negative_zeros=True))
    elif rule == "sgd":
        param.add_(grad, alpha=-lr)


def choose_part(
    grad: Tensor, split: str, density: float, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """What a split stores of its choice: `indices`, sorted, or `projection` (r, n) for m >= n, else (m, r)."""
    if split == "columns":
        count = int(grad.shape[1] * density)
        order = torch.randperm(grad.shape[1], generator=generator, device=grad.device)
        return {"indices": order[:count].sort().values}
    if split == "elements":
        # 4-byte indices: a matrix has less than 2^31 elements.
        order = torch.randperm(grad.numel(), generator=generator, device=grad.device, dtype=torch.int32)
        chosen = order[: int(grad.numel() * density)].clone()
        del order
        return {"indices": chosen.sort().values}
    rank = split_rank(grad.shape, density)
    is_right = grad.shape[0] >= grad.shape[1]
    if split == "random":
        shape = (min(grad.shape), rank)
        basis = torch.linalg.qr(torch.randn(shape, generator=generator, device=grad.device)).Q
    else:
        basis = _leading_singular_vectors(grad, rank, is_right=is_right)
    basis = basis.t() if is_right else basis
    return {"projection": basis.to(grad.dtype, copy=True, memory_format=torch.contiguous_format)}


def _leading_singular_vectors(grad: Tensor, rank: int, *, is_right: bool) -> Tensor:
    """Singular vectors of the shorter side, from the eigenvectors of the Gram matrix: smaller and faster than an SVD."""
    matrix = grad.float()
    gram = matrix.t() @ matrix if is_right else matrix @ matrix.t()
    del matrix
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -rank:]


def update_columns(
    param: Tensor, grad: Tensor, state: dict[str, Any], *, free: dict[str, Any], full: dict[str, Any]
) -> None:
    """AdamW on the columns `indices` (k,), moments (m, k); the state-free rule on the others. Some rows at a time."""
    indices, moments = state["indices"], (state["exp_avg"], state["exp_avg_sq"])
    scratch = param.new_empty(rows_per_chunk(param.shape) * param.shape[1])
    for piece, piece_grad, *piece_moments in row_chunks(param, grad, *moments):
        part = piece.index_select(1, indices)
        state_free_update(piece, piece_grad, scratch[: piece.numel()].view(piece.shape), **free)
        part_grad = scratch[: part.numel()].view(part.shape)
        torch.index_select(piece_grad, 1, indices, out=part_grad)
        fused_adamw(part, part_grad, *piece_moments, step=state["step"], **full)
        piece.index_copy_(1, indices, part)
        del part  # else it would live while the next piece's is made


def update_elements(
    param: Tensor, grad: Tensor, state: dict[str, Any], *, free: dict[str, Any], full: dict[str, Any]
) -> None:
    """AdamW on the elements `indices` (k,) of the flat matrix, moments (k,); the state-free rule on the others."""
    flat, flat_grad = param.view(-1), grad.reshape(-1)
    part = flat.index_select(0, state["indices"])
    scratch = scratch_for(param)
    for piece, piece_grad in chunks(param, grad):
        state_free_update(piece, piece_grad, scratch[: piece.numel()].view(piece.shape), **free)
    del scratch
    tensors = (part, state["indices"], state["exp_avg"], state["exp_avg_sq"])
    for piece, indices, *moments in chunks(*tensors):
        positions = indices.long()
        fused_adamw(piece, flat_grad.index_select(0, positions), *moments, step=state["step"], **full)
        flat.index_copy_(0, positions, piece)
        del positions


def update_projected(
    param: Tensor, grad: Tensor, state: dict[str, Any], *, free: dict[str, Any], full: dict[str, Any]
) -> None:
    """AdamW on the projected gradient, the state-free rule on what the projection leaves; some rows at a time.

    Shapes: projection (r, n) and moments (m, r) for m >= n; projection (m, r) and moments (r, n) else.
    """
    projection, is_right = state["projection"], param.shape[0] >= param.shape[1]
    low = grad @ projection.t() if is_right else projection.t() @ grad
    update = torch.zeros_like(low)
    moments = (state["exp_avg"], state["exp_avg_sq"])
    fused_adamw(update, low, *moments, step=state["step"], **{**full, "weight_decay": 0.0})
    scratch = param.new_empty(rows_per_chunk(param.shape), param.shape[1])
    factors = (low, update) if is_right else (projection, projection)
    for piece, piece_grad, left_low, left_update in row_chunks(param, grad, *factors):
        right_low, right_update = (projection, projection) if is_right else (low, update)
        residual = scratch[: len(piece)]
        if free["rule"] != "none":
            torch.addmm(piece_grad, left_low, right_low, alpha=-1, out=residual)
        factor = 1.0
        if free["rule"] == "sign":
            factor = signs_into(residual, residual, negative_zeros=True)
        beta = 0.0 if free["rule"] == "none" else -free["lr"] * factor
        torch.addmm(residual, left_update, right_update, beta=beta, out=residual)
        if full["weight_decay"]:
            piece.mul_(1 - full["lr"] * full["weight_decay"])
        piece.add_(residual)
