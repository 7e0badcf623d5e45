"""GWT keeps AdamW's moments of the gradient's coarse Haar coefficients: 1 / 2^level of AdamW's state for matrices.

Ziqing Wen et al.: Wavelet Meets Adam: Compressing Gradients for Memory-Efficient Training, arXiv:2501.07237, Algorithm
1: A, D <- Haar transform of g along rows; m, v <- Adam's moments of A; the update is the inverse transform of m and D,
both divided by sqrt(v) + eps. Parameters that are no matrices get AdamW.

One denominator serves a whole block of b = 2^level columns, and the details are the gradient less its block mean, so the
inverse transform needs no transform: the update is (g + (m - A) / sqrt(b)) / (sqrt(v) + eps), exactly.

Differs from the paper: the authors' code also limits the growth of the normalised coefficients' norm, as Fira does
(`norm_growth_limit=1.01`); the default is the algorithm without it. A last block that is not full is filled with zeros.
`bias_correction` is on as in that code (`correct_bias` of zqOuO/GWT, galore_torch/waveadamw.py at a8fb66a); that the printed
algorithm has none is recalled, unverified.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.adamw import adamw_states, init_adamw_state, step_adamw
from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_fraction,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.chunks import row_chunks, rows_per_chunk
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.low_rank import bias_correction, limit_growth

__all__ = ["ENTRY", "GWT", "coarse_coefficients", "gwt_update"]

NORM_BYTES = 4


def coarse_coefficients(grad: Tensor, block: int) -> Tensor:
    """A of the Haar transform: sums over blocks of columns / sqrt(block). Shapes: (m, n) to (m, ceil(n / block))."""
    rows, columns = grad.shape
    coarse = grad.new_empty(rows, -(-columns // block))
    if columns % block == 0 and grad.is_contiguous():
        weights = grad.new_full((block,), 1 / sqrt(block))
        torch.mv(grad.view(-1, block), weights, out=coarse.view(-1))
        return coarse
    torch.mul(grad[:, ::block], 1 / sqrt(block), out=coarse)
    for column in range(1, min(block, columns)):
        part = grad[:, column::block]
        coarse[:, : part.shape[1]].add_(part, alpha=1 / sqrt(block))
    return coarse


def gwt_update(
    param: Tensor,
    grad: Tensor,
    difference: Tensor,
    denominator: Tensor,
    scratch: Tensor,
    *,
    block: int,
    step_size: float,
) -> None:
    """In place, p <- p - step (g / denominator + difference), the last two one number per block of columns.

    Shapes: param, grad, scratch (rows, n); difference, denominator (rows, ceil(n / block)).
    """
    parts = [scratch[:, column::block] for column in range(min(block, param.shape[1]))]
    for part in parts:
        part.copy_(denominator[:, : part.shape[1]])
    torch.div(grad, scratch, out=scratch)
    for part in parts:
        part.add_(difference[:, : part.shape[1]])
    param.add_(scratch, alpha=-step_size)


class GWT(PerParameterOptimizer):
    """AdamW on Haar coefficients for matrices whose rows are longer than a block, AdamW for everything else."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        level: int = 2,
        projection_scale: float = 0.25,
        bias_correction: bool = True,
        norm_growth_limit: float | None = None,
    ) -> None:
        check_non_negative("lr", lr)
        check_positive("eps", eps)
        check_non_negative("weight_decay", weight_decay)
        check_positive("projection_scale", projection_scale)
        for number, beta in enumerate(betas):
            check_fraction(f"betas[{number}]", beta)
        if level not in range(1, 17):
            raise ValueError(f"level is {level}; accepted: a whole number from 1 to 16")
        if norm_growth_limit is not None and not norm_growth_limit >= 1:
            raise ValueError(f"norm_growth_limit is {norm_growth_limit}; accepted: None, or at least 1")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "level": level,
            "projection_scale": projection_scale,
            "bias_correction": bias_correction,
            "norm_growth_limit": norm_growth_limit,
        }
        super().__init__(params, defaults)

    def init_state(self, param: Tensor, group: Group) -> State:
        """Moments of the coarse coefficients, or of everything."""
        if not _is_transformed(param.ndim, group):
            return init_adamw_state(param)
        shape = (param.shape[0], -(-param.shape[1] // 2 ** group["level"]))
        state = {"step": 0, "exp_avg": param.new_zeros(shape), "exp_avg_sq": param.new_zeros(shape)}
        if group["norm_growth_limit"] is not None:
            state["scale"] = torch.zeros((), dtype=torch.float32, device=param.device)
        return state

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Moments of the whole matrix, then the parameter some rows at a time."""
        state["step"] += 1
        step, betas, lr = state["step"], group["betas"], group["lr"]
        exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
        if not _is_transformed(param.ndim, group):
            step_adamw(param, grad, state, group)
            return
        block = 2 ** group["level"]
        coarse = coarse_coefficients(grad, block)
        exp_avg.lerp_(coarse, 1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(coarse, coarse, value=1 - betas[1])
        denominator = exp_avg_sq.sqrt().add_(group["eps"])
        if group["norm_growth_limit"] is not None:
            norm = torch.linalg.vector_norm(exp_avg / denominator, dtype=torch.float32)
            denominator.mul_(limit_growth(norm, state["scale"], limit=group["norm_growth_limit"]))
        torch.sub(exp_avg, coarse, out=coarse).div_(denominator).mul_(1 / sqrt(block))
        if group["weight_decay"]:
            param.mul_(1 - lr * group["weight_decay"])
        step_size = lr * group["projection_scale"]
        if group["bias_correction"]:
            step_size *= bias_correction(step, betas)
        scratch = param.new_empty(rows_per_chunk(param.shape), param.shape[1])
        for piece, piece_grad, difference, part in row_chunks(param, grad, coarse, denominator):
            rows = scratch[: len(piece)]
            gwt_update(piece, piece_grad, difference, part, rows, block=block, step_size=step_size)


def _is_transformed(num_dims: int, group: Group) -> bool:
    return num_dims == 2 and group.get("role", Role.MATRIX) == Role.MATRIX


class _Declaration:
    """Moments of ceil(n / 2^level) columns; temporaries of two such matrices and one piece."""

    def treatment(self, role: Role) -> str:
        return "wavelet adamw" if role is Role.MATRIX else "adamw"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        shape = self._coarse_shape(parameter, hyper)
        if shape is None:
            return adamw_states(parameter)
        moments = tuple(StateTensor(name, shape, parameter.dtype) for name in ("exp_avg", "exp_avg_sq"))
        if hyper["norm_growth_limit"] is None:
            return moments
        return (*moments, StateTensor("scale", (), torch.float32))

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        """Coarse coefficients, denominators, and one piece of the update or the limiter's quotients."""
        shape = self._coarse_shape(parameter, hyper)
        if shape is None:
            return 4  # the step count of torch's fused kernel
        coarse = shape[0] * shape[1]
        piece = rows_per_chunk(parameter.shape) * parameter.shape[1]
        quotients = 0 if hyper["norm_growth_limit"] is None else coarse
        block = 2 ** hyper["level"] if parameter.shape[1] % 2 ** hyper["level"] == 0 else 0
        size = parameter.dtype.itemsize
        return max(
            (2 * coarse + piece) * size, (2 * coarse + quotients) * size + NORM_BYTES, (coarse + block) * size
        )

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        return None

    def _coarse_shape(self, parameter: Parameter, hyper: Hyper) -> tuple[int, int] | None:
        if not _is_transformed(len(parameter.shape), {"role": parameter.role}):
            return None
        return (parameter.shape[0], -(-parameter.shape[1] // 2 ** hyper["level"]))


_DEFAULTS: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "level": 2,
    "projection_scale": 0.25,
    "bias_correction": True,
    "norm_growth_limit": None,
}

ENTRY = OptimizerEntry(
    name="gwt",
    title="GWT",
    summary="AdamW's moments of coarse wavelet coefficients: a quarter of AdamW's states for matrices at level 2.",
    paper="Wen et al.: Wavelet Meets Adam: Compressing Gradients for Memory-Efficient Training, arXiv:2501.07237",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: GWT(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(
        reasons={"shards": "A shard along the columns would need whole blocks of 2^level of them."}
    ),
    paper_differences="The authors' code limits the growth of the update's norm (norm_growth_limit=1.01) and takes the "
    "boundary from a setting; the default has no limit and fills the last block with zeros. Moments begin at 0 and "
    "are corrected for it, as in the code; bias_correction=False leaves that out.",
)
