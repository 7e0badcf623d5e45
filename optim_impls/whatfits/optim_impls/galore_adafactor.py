"""GaLore with Adafactor: row and column means of the projected gradient's square instead of moments.

Jiawei Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507, section 5
(Adafactor as the inner optimizer); Noam Shazeer, Mitchell Stern: Adafactor: Adaptive Learning Rates with Sublinear
Memory Cost, arXiv:1804.04235, Algorithms 4 and 5 without first moment and relative step size. A projected matrix keeps
r M numbers and 4 (N + r) bytes; other matrices 4 (m + n) bytes, vectors 4 e.

Differs from galore-torch 1.0: P has the parameter's dtype, is a copy, and nothing of the gradient's size is made in fp32;
unprojected matrices are updated, and squares summed, by pieces of rows. Means are fp32 as there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import Group, State, check_non_negative, check_positive
from whatfits.optim_impls.declare import Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.galore import SUBSPACE_DEFAULTS, SubspaceOptimizer, refreshed_transient
from whatfits.optim_impls.projection import LowRank, low_rank_of, tall

__all__ = ["ENTRY", "GaLoreAdafactor", "factored_update", "rms_limit"]

FP32_BYTES = 4
PIECE = 65_536
"""Elements of a matrix that are squared or, unprojected, updated at once."""


def factored_update(
    grad: Tensor,  # (m, n)
    row: Tensor,  # (m,) fp32
    col: Tensor,  # (n,) fp32
    scratch: Tensor,  # (rows of a piece, n) fp32
    *,
    decay: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Update the means of grad^2 + eps; the factors whose product with the gradient is the update: (m, 1), (1, n).

    Squares of a piece that stays in cache are summed both ways: on a CPU torch's own norm along columns takes 25 times
    as long as along rows.
    """
    rows, columns = torch.empty_like(row), torch.zeros_like(col)
    for part, piece in pieces(scratch, len(row)):
        piece.copy_(grad[part]).square_()
        torch.sum(piece, 1, out=rows[part])
        columns.add_(piece.sum(0))
    for sums, mean, count in ((rows, row, len(col)), (columns, col, len(row))):
        mean.lerp_(sums.div_(count).add_(eps), 1 - decay)
    torch.div(row, row.mean(), out=rows).rsqrt_()
    torch.rsqrt(col, out=columns)
    return rows.unsqueeze(1), columns.unsqueeze(0)


def rms_limit(norm: Tensor, numel: int, threshold: float) -> Tensor:
    """What an update of this norm is divided by so that its root mean square is at most the threshold. Shape: ()."""
    limit: Tensor = (norm / (threshold * float(numel) ** 0.5)).clamp_(min=1.0)
    return limit


def pieces(scratch: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of as many rows as the scratch has, the last may have fewer, with as much of the scratch."""
    for start in range(0, rows, len(scratch)):
        part = slice(start, min(start + len(scratch), rows))
        yield part, scratch[: part.stop - start]


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows of a piece."""
    return min(shape[0], max(1, PIECE // shape[1]))


class GaLoreAdafactor(SubspaceOptimizer):
    """Adafactor in the low-rank space for groups of role `matrix`, Adafactor for the others."""

    def __init__(self, params: ParamsT, **hyper: Any) -> None:  # the defaults' names and types
        check_positive("clip_threshold", hyper["clip_threshold"])
        if not hyper["decay_rate"] < 0:
            raise ValueError(f"decay_rate is {hyper['decay_rate']}; accepted: a number below 0")
        check_non_negative("eps", hyper["eps"])
        super().__init__(params, **hyper)

    def init_state(self, param: Tensor, group: Group) -> State:
        """Means of the projected gradient with P, of a matrix, or of a vector's elements."""
        if group["role"] == Role.MATRIX:
            return super().init_state(param, group)
        return {"step": 0, **_zeros(param, _mean_shapes(tuple(param.shape)))}

    def init_matrix(self, param: Tensor, low: LowRank, group: Group) -> State:
        """P, which the first step writes, and the means."""
        del group
        projection = torch.empty(low.projection_shape, dtype=param.dtype, device=param.device)
        return {"projection": projection, **_zeros(param, _mean_shapes(low.low_shape))}

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Decay the weights where asked, then the update of the parameter's kind."""
        state["step"] += 1
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        if group["role"] == Role.MATRIX:
            self.update_matrix(param, grad, state, group)
        elif param.ndim == 2:
            self._update_in_pieces(param, grad, state, group)
        else:
            self._update_elements(param, grad, state, group)

    def update_matrix(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Scale the projected gradient in fp32, limit it, and add its back-projection by one product."""
        self.refresh(grad, state, group)
        update = (tall(grad) @ state["projection"].T).float()
        rows, columns = self._factors(update, _scratch_for(update), state, group)
        update.mul_(rows).mul_(columns)
        del rows, columns
        update.div_(rms_limit(torch.linalg.vector_norm(update), update.numel(), group["clip_threshold"]))
        rate = -group["lr"] * group["projection_scale"]
        tall(param).addmm_(update.to(param.dtype), state["projection"], alpha=rate)

    def _update_in_pieces(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        scratch = _scratch_for(grad)
        rows, columns = self._factors(grad, scratch, state, group)
        total = torch.zeros((), dtype=torch.float32, device=param.device)
        for part, piece in pieces(scratch, len(grad)):
            torch.mul(grad[part], columns, out=piece).mul_(rows[part])
            total.add_(torch.linalg.vector_norm(piece).square_())
        rows.div_(rms_limit(total.sqrt_(), grad.numel(), group["clip_threshold"]))
        for part, piece in pieces(scratch, len(grad)):
            torch.mul(grad[part], columns, out=piece)
            param[part].addcmul_(piece, rows[part], value=-group["lr"])

    def _update_elements(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        decay = 1 - state["step"] ** group["decay_rate"]
        values = grad.float()
        state["exp_avg_sq"].lerp_(values.square().add_(group["eps"]), 1 - decay)
        update = state["exp_avg_sq"].rsqrt().mul_(values)
        update.div_(rms_limit(torch.linalg.vector_norm(update), update.numel(), group["clip_threshold"]))
        param.add_(update, alpha=-group["lr"])

    def _factors(self, grad: Tensor, scratch: Tensor, state: State, group: Group) -> tuple[Tensor, Tensor]:
        decay = 1 - state["step"] ** group["decay_rate"]
        row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        return factored_update(grad, row, col, scratch, decay=decay, eps=group["eps"])


def _mean_shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    if len(shape) != 2:
        return {"exp_avg_sq": shape}
    return {"exp_avg_sq_row": shape[:1], "exp_avg_sq_col": shape[1:]}


def _scratch_for(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    return torch.empty((rows_at_once((rows, columns)), columns), dtype=torch.float32, device=matrix.device)


def _zeros(param: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> State:
    return {name: torch.zeros(shape, device=param.device) for name, shape in shapes.items()}


def _factors_bytes(shape: tuple[int, ...]) -> int:
    """Scratch, factors and sums of a piece's columns, in whose place two norms come later."""
    rows, columns = shape
    return FP32_BYTES * (rows_at_once(shape) * columns + rows + columns + max(columns, 2))


@dataclass(frozen=True, slots=True)
class GaLoreAdafactorDeclaration:
    """Bytes of `GaLoreAdafactor`."""

    def treatment(self, role: Role) -> str:
        """Matrices are projected."""
        return "projected, adafactor" if role is Role.MATRIX else "adafactor"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """R M s + 4 (N + r) bytes of a projected matrix, 4 (m + n) of another, 4 e of a vector."""
        shape, own = parameter.shape, tuple[StateTensor, ...]()
        if parameter.role is Role.MATRIX:
            low = low_rank_of(shape, hyper["rank"])
            shape, own = low.low_shape, (StateTensor("projection", low.projection_shape, parameter.dtype),)
        means = _mean_shapes(shape).items()
        return (*own, *(StateTensor(name, size, torch.float32) for name, size in means))

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """None."""
        del hyper
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """The projected gradient in fp32, a piece and its factors; a piece and its factors; a vector's elements; norms."""
        shape, dtype = parameter.shape, parameter.dtype
        if parameter.role is Role.MATRIX:
            low = low_rank_of(shape, hyper["rank"])
            numel = low.rank * low.long_side
            cast = 0 if dtype is torch.float32 else dtype.itemsize * numel
            factors = _factors_bytes(low.low_shape)
            steady = FP32_BYTES * numel + max(cast, factors)
            return refreshed_transient(steady, low, dtype, hyper, phase)
        if len(shape) == 2:
            return _factors_bytes(shape)
        return FP32_BYTES * (parameter.numel * (1 if dtype is torch.float32 else 2) + 2)

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Steps from SVD to SVD."""
        interval: int = hyper["projection_update_interval"]
        return interval


DEFAULTS: Mapping[str, Any] = {
    **{name: value for name, value in SUBSPACE_DEFAULTS.items() if name != "betas"},
    "eps": 1e-30,
    "decay_rate": -0.8,
    "clip_threshold": 1.0,
}

ENTRY = OptimizerEntry(
    name="galore_adafactor",
    title="GaLore with Adafactor",
    summary="Row and column means of the projected gradient instead of moments.",
    paper="Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: GaLoreAdafactor(groups, **hyper),
    defaults=DEFAULTS,
    declaration=GaLoreAdafactorDeclaration(),
    paper_differences="galore-torch computes and keeps the projection in fp32; here it has the parameter's dtype.",
    trainer_name="galore_adafactor",
)
