"""Projections of a matrix gradient to a low rank: how they are laid out, how they are found, what finding them costs.

A matrix is looked at with its longer side first: A = G where m >= n, else its transpose, N x M (a view). P is r x M
with directions of the shorter side as rows, the projected gradient A P^T is N x r. That is the side galore_torch's
`std` type chooses. Quantised methods take a matrix as it lies (`as_it_lies`), since blocks and groups of elements follow
memory: where m < n their P is m x r and their projected gradient r x n.

* `svd`: the exact leading singular vectors (arXiv:2403.03507, Algorithm 2), as a copy, so that no M x M factor stays.
* `randomised`: Halko, Martinsson, Tropp: Finding Structure with Randomness, arXiv:0909.4061, Algorithms 4.4 and 5.1,
  two power iterations; no full SVD.
* `warm`: one subspace iteration from the last P (the same, Algorithm 4.4 begun there); the first P is `randomised`.
* `draw_random`: entries N(0, 1 / r) from a seed (arXiv:2412.05270, section 4.1).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol
from zlib import crc32

import torch
from torch import Tensor

from whatfits.optim_impls.chunks import rows_at_a_time

__all__ = [
    "PROJECTORS",
    "LowRank",
    "Projector",
    "channel_norms",
    "draw_random",
    "low_rank_of",
    "norms_in_pieces",
    "norms_in_pieces_bytes",
    "refresh_bytes",
    "seeded_generator",
    "svd_directions",
    "tall",
]

OVERSAMPLING = 8
POWER_ITERATIONS = 2
FP32_BYTES = 4
PIECE = 65_536


class LowRank(NamedTuple):
    """Sizes of one projected matrix; `is_right` where P is multiplied from the right, as with the longer side first."""

    rank: int
    short_side: int
    long_side: int
    is_right: bool = True

    @property
    def projection_shape(self) -> tuple[int, int]:
        """Shape of P: r x M, else M x r."""
        return (self.rank, self.short_side) if self.is_right else (self.short_side, self.rank)

    @property
    def low_shape(self) -> tuple[int, int]:
        """Shape of the projected gradient and of its moments: N x r, else r x N."""
        return (self.long_side, self.rank) if self.is_right else (self.rank, self.long_side)

    @property
    def low_numel(self) -> int:
        """Elements of the projected gradient."""
        return self.rank * self.long_side

    def as_rows(self, projection: Tensor) -> Tensor:
        """P with its directions as rows, or such rows as P lies: a view."""
        return projection if self.is_right else projection.T


def low_rank_of(
    shape: tuple[int, ...], rank: int, *, clips: bool = True, as_it_lies: bool = False
) -> LowRank:
    """The projection of a matrix; directions of an SVD are at most as many as the shorter side."""
    short_side, long_side = sorted(shape)
    is_right = not as_it_lies or shape[0] >= shape[1]
    return LowRank(min(rank, short_side) if clips else rank, short_side, long_side, is_right)


def tall(matrix: Tensor) -> Tensor:
    """The matrix with its longer side first, as a view."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def channel_norms(matrix: Tensor, *, rows_at_once: int) -> Tensor:
    """Norms of the rows of a matrix with its longer side first. Shape: (N, 1), fp32.

    Along strides the CPU's norm is ten times slower than sums of squares of pieces that stay in cache; those are of
    at most `rows_at_once` rows of the matrix as it lies in memory.
    """
    if matrix.is_cuda or matrix.is_contiguous():
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=torch.float32)
        return norms
    wide = matrix.T
    step = max(1, min(rows_at_once, PIECE // wide.shape[1]))
    squares = torch.zeros(wide.shape[1], dtype=torch.float32, device=matrix.device)
    for start in range(0, wide.shape[0], step):
        piece = wide[start : start + step].to(torch.float32, copy=True)
        squares.add_(piece.square_().sum(0))
        del piece
    return squares.sqrt_().unsqueeze(1)


def norms_in_pieces(matrix: Tensor, *, by_row: bool) -> Tensor:
    """Norm of each row, or of each column. Shapes: matrix (m, n), result (m,) or (n,) fp32.

    torch's own `vector_norm` with dim 0 takes forty times as long on a CPU as with dim 1, and one of bf16 values fifteen
    times as long as of fp32; this takes about as long as reading the matrix.
    """
    if by_row and matrix.dtype is torch.float32:
        norms: Tensor = torch.linalg.vector_norm(matrix, dim=1)
        return norms
    rows, columns = matrix.shape
    step = rows_at_a_time((rows, columns))
    out = torch.zeros(rows if by_row else columns, dtype=torch.float32, device=matrix.device)
    scratch = torch.empty((step, columns), dtype=torch.float32, device=matrix.device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = scratch[: part.stop - start].copy_(matrix[part])
        if by_row:
            torch.linalg.vector_norm(piece, dim=1, out=out[part])
        else:
            out.add_(piece.square_().sum(0))
    return out if by_row else out.sqrt_()


def norms_in_pieces_bytes(shape: tuple[int, int], dtype: torch.dtype, *, by_row: bool) -> int:
    """Peak of what `norms_in_pieces` holds, its result included."""
    rows, columns = shape
    if by_row and dtype is torch.float32:
        return FP32_BYTES * rows
    piece = FP32_BYTES * rows_at_a_time(shape) * columns
    return piece + FP32_BYTES * (rows if by_row else 2 * columns)


def seeded_generator(seed: int, number: int, draw: int, device: torch.device) -> torch.Generator | None:
    """Random numbers of their own for each parameter and draw; None on `meta`, which has none."""
    if device.type == "meta":
        return None
    return torch.Generator(device).manual_seed(crc32(f"{seed} {number} {draw}".encode()))


def draw_random(out: Tensor, generator: torch.Generator | None, *, rank: int) -> None:
    """Write P ~ N(0, 1 / r). Shape: (r, M) or (M, r)."""
    out.normal_(0.0, float(rank) ** -0.5, generator=generator)


class Projector(Protocol):
    """Finds the directions of a gradient."""

    def __call__(
        self, grad: Tensor, rank: int, generator: torch.Generator | None, *, last: Tensor | None
    ) -> Tensor:
        """Shapes: grad (m, n), last (r, M), the directions so far, None at first; returns (r, M) fp32, may be a view."""
        ...


def svd_directions(grad: Tensor, rank: int) -> Tensor:
    """The leading singular vectors of the shorter side, a view of the SVD's factor. Shape: (r, M) fp32."""
    factors: tuple[Tensor, Tensor, Tensor] = torch.linalg.svd(grad.float(), full_matrices=False)
    u, _, vh = factors
    return vh[:rank] if grad.shape[0] >= grad.shape[1] else u[:, :rank].T


def _svd(grad: Tensor, rank: int, generator: torch.Generator | None, *, last: Tensor | None) -> Tensor:
    del generator, last
    return svd_directions(grad, rank)


def _randomised(grad: Tensor, rank: int, generator: torch.Generator | None, *, last: Tensor | None) -> Tensor:
    del last
    matrix = tall(grad.float())
    short_side = matrix.shape[1]
    basis = torch.empty(short_side, min(rank + OVERSAMPLING, short_side), device=grad.device)
    basis.normal_(generator=generator)
    for _ in range(POWER_ITERATIONS):
        basis = _orthonormal(matrix.T @ _orthonormal(matrix @ basis))
    sketch = matrix @ basis
    gram = sketch.T @ sketch
    del sketch
    # Eigenvalues ascend: the last columns are the leading directions.
    rotation: Tensor = torch.linalg.eigh(gram)[1]
    leading = rotation.flip(1)[:, :rank]
    return leading.T @ basis.T


def _warm(grad: Tensor, rank: int, generator: torch.Generator | None, *, last: Tensor | None) -> Tensor:
    if last is None:
        return _randomised(grad, rank, generator, last=None)
    matrix = tall(grad.float())
    return _orthonormal(matrix.T @ (matrix @ last.T.float())).T


def _orthonormal(matrix: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(matrix)[0]
    return q


PROJECTORS: Mapping[str, Projector] = MappingProxyType(
    {"svd": _svd, "randomised": _randomised, "warm": _warm}
)
"""How a GaLore-like method can find its directions."""


def refresh_bytes(method: str, low: LowRank, dtype: torch.dtype, *, is_first: bool) -> int:
    """Peak of what a refresh holds beside the gradient and P.

    svd: U, S and Vh in fp32, 4 (m n + M + M^2). randomised, with k = min(r + 8, M) columns: 4 (2 N k + M k + k^2) for
    a QR of N x k, or 4 (3 M k + k^2) for one of M x k. warm: 4 (N r + M r), or 4 (2 M r + r^2) for its QR. 4 m n
    more for an fp32 copy of a gradient of another dtype.
    """
    r, m, n = low.rank, low.short_side, low.long_side
    copy = 0 if dtype is torch.float32 else m * n
    if method == "svd":
        return FP32_BYTES * (copy + m * n + m + m * m)
    if method == "randomised" or is_first:
        k = min(r + OVERSAMPLING, m)
        elements = max(2 * n * k + m * k + k * k, n * k + 2 * m * k, 3 * m * k + k * k)
        return FP32_BYTES * (copy + elements)
    return FP32_BYTES * (copy + max(n * r + m * r, 2 * m * r + r * r))
