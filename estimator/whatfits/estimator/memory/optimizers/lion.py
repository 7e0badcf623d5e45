"""Lion: the sign of an interpolation between gradient and momentum.

Xiangning Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675, Algorithm 2. Allocations are
those of pytorch-optimizer 4.1.0 (`pytorch_optimizer.Lion`, multi-tensor).
"""

from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.parameter_lists import OneListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepWork

__all__ = ["Lion"]

ACCESSES = 11
"""Tensor reads and writes: lerp 3, sign_ 2, lerp_ 3, add_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lion(OneListProgram):
    """p <- p - lr sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g; the update is a list."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The momentum in the parameter's dtype: e s bytes.

        Source: arXiv:2302.06675, Algorithm 2; pytorch_optimizer/optimizer/lion.py, `init_group`.
        Assumes: no AdaNorm.
        """
        return (StateTensor(name="exp_avg", nbytes=parameter.numel * self.param_dtype_bytes),)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 11 e s.

        Source: pytorch_optimizer/optimizer/lion.py, `_step_foreach`.
        Assumes: no weight decay (the library's default); no reuse in cache.
        """
        return StepWork(0, ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
