"""Shapes of a low-rank projection of a matrix gradient, and AdamW as the low-rank methods' code writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters, is_linear_matrix
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor

__all__ = ["DEFAULT_UPDATE_INTERVAL", "LowRankProgram", "Projection"]

DEFAULT_UPDATE_INTERVAL = 200
"""Steps between projection refreshes (`update_proj_gap`) in the GaLore and the APOLLO repositories' scripts."""

LOW_RANK_ADAM_ACCESSES = 17
"""Tensor reads and writes of the moments' update: mul_ 2, add_ 3, mul_ 2, addcmul_ 3, sqrt 2, add_ 2, div 3."""

PARAMETER_UPDATE_ACCESSES = 3
"""``p.add_(update)``: read both, write one."""


class Projection(NamedTuple):
    """Element counts of one projected m x n matrix, with M = min(m, n) and N = max(m, n)."""

    full: int
    short_side: int
    long_side: int
    rank: int
    is_right: bool
    """Whether the columns are projected (m >= n, P is r x n) or the rows (m < n, P is m x r)."""

    @property
    def low_rank(self) -> int:
        """Elements of the projected gradient and of each moment: r N."""
        return self.rank * self.long_side

    @property
    def matrix(self) -> int:
        """Elements of P: r M."""
        return self.rank * self.short_side

    @property
    def product_flops(self) -> int:
        """FLOPs of one product of the gradient's size with P: 2 m n r."""
        return 2 * self.full * self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankProgram(PerParameterProgram):
    """Base of the methods that project the gradients of linear layers and use AdamW elsewhere.

    Only two-dimensional parameters with the role `linear` are projected, as the methods' training scripts select
    them (modules ``attn`` and ``mlp``); embeddings, heads and vectors keep full states. Those scripts, and Hugging
    Face's Trainer, make two parameter groups, the projected one last.
    """

    clips_rank: ClassVar[bool] = True
    """Whether the rank is at most the shorter side, as after an SVD, which has no more directions."""

    rank: int
    update_interval: int = DEFAULT_UPDATE_INTERVAL

    def in_order(self, parameters: Sequence[ParameterTensor]) -> Parameters:
        """Unprojected parameters first."""
        return Parameters.of(parameters).matrices_last

    def projection(self, parameter: ParameterTensor) -> Projection | None:
        """Counts of the projected matrix, or None where the parameter is not projected."""
        if not is_linear_matrix(parameter):
            return None
        m, n = parameter.shape
        short_side, long_side = min(m, n), max(m, n)
        rank = min(self.rank, short_side) if self.clips_rank else self.rank
        return Projection(m * n, short_side, long_side, rank, is_right=m >= n)

    def record_adam(self, frame: Frame, nbytes: int) -> None:
        """``denom = exp_avg_sq.sqrt().add_(eps)``, then ``norm_grad = exp_avg / denom``."""
        frame.assign("denom", frame.temporary(nbytes, "denom"))
        frame.assign("norm_grad", frame.temporary(nbytes, "norm_grad"))

    def full_rank_traffic(self, parameter: ParameterTensor) -> int:
        """Bytes the unprojected AdamW moves: 20 e s.

        Source: galore_torch/adamw.py, one kernel per operator.
        Assumes: no weight decay; no reuse in cache.
        """
        accesses = LOW_RANK_ADAM_ACCESSES + PARAMETER_UPDATE_ACCESSES
        return accesses * parameter.numel * self.param_dtype_bytes
