"""Schedule-Free AdamW: averages of iterates in place of a learning-rate schedule.

Aaron Defazio, Xingyu Alice Yang, Harsh Mehta, Konstantin Mishchenko, Ahmed Khaled, Ashok Cutkosky: The Road Less
Scheduled, arXiv:2405.15682. Allocations are those of schedulefree 1.4.1 (`schedulefree.AdamWScheduleFree`, foreach).
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.parameter_lists import OneListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepWork

__all__ = ["ScheduleFreeAdamW"]

ACCESSES = 23
"""Tensor reads and writes: mul_ 2, addcmul_ 3, div 2, sqrt_ 2, add_ 2, div_ 3, lerp_ 3, add_ 3, sub_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFreeAdamW(OneListProgram):
    """The parameters are y; g <- g / (sqrt(v) + eps) in place; y <- (1 - c) y + c z - ..., z <- z - lr g."""

    list_name: ClassVar[str] = "denom"

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The base sequence z and the second moment in the parameter's dtype: 2 e s bytes.

        Source: arXiv:2405.15682, Algorithm 1; schedulefree/adamw_schedulefree.py, ``step()``.
        Assumes: the average x is never stored: `eval()` derives it in place.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        return (StateTensor(name="z", nbytes=nbytes), StateTensor(name="exp_avg_sq", nbytes=nbytes))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 23 e s.

        Source: schedulefree/adamw_schedulefree.py, ``step()`` with ``foreach``.
        Assumes: no weight decay (the library's default); no reuse in cache.
        """
        return StepWork(0, ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
