"""Adan: Nesterov momentum from the differences of successive gradients.

Xingyu Xie, Pan Zhou, Huan Li, Zhouchen Lin, Shuicheng Yan: Adan: Adaptive Nesterov Momentum Algorithm for Faster
Optimizing Deep Models, arXiv:2208.06677, Algorithm 1. Allocations are those of pytorch-optimizer 4.1.0
(`pytorch_optimizer.Adan`, multi-tensor).

Differs from the paper: it counts three moments; the code keeps the previous gradient as a fourth tensor.
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.parameter_lists import OneListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepWork

__all__ = ["Adan"]

STATES = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad")
ACCESSES = 37
"""Tensor reads and writes: add_ 3, lerp_ 3, lerp_ 3, mul_ 2, add_ 3, mul_ 2, addcmul_ 3, sqrt 2, div_ 2, add_ 2,
addcdiv_ 4, addcdiv_ 4, copy_ 2, neg_ 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adan(OneListProgram):
    """p <- p - lr (m + b2 d) / (sqrt(n) + eps): m of gradients, d of their differences, n of (g + b2 (g - g'))^2."""

    list_name: ClassVar[str] = "de_noms"

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Three moments and the previous gradient in the parameter's dtype: 4 e s bytes.

        Source: arXiv:2208.06677, Algorithm 1; pytorch_optimizer/optimizer/adan.py, `init_group`.
        Assumes: no AdaNorm.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        return tuple(StateTensor(name=name, nbytes=nbytes) for name in STATES)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 37 e s.

        Source: pytorch_optimizer/optimizer/adan.py, `_step_foreach`.
        Assumes: no weight decay, no clipping (the library's defaults); no reuse in cache.
        """
        return StepWork(0, ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
