"""Sophia: momentum divided by an estimate of the Hessian's diagonal, clipped element by element.

Hong Liu, Zhiyuan Li, David Hall, Percy Liang, Tengyu Ma: Sophia: A Scalable Stochastic Second-order Optimizer for
Language Model Pre-training, arXiv:2305.14342, Algorithm 3. Allocations are those of SophiaG (Liuhong99/Sophia, commit
a7e1572, sophia.py), found by tracing its step.

Every tenth step or so its Gauss-Newton-Bartlett estimator runs another forward and backward pass with sampled labels;
the passes' memory is that of any micro-batch, and `update_hessian` works in place.
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["SophiaG"]

STEP_BYTES = 4
ACCESSES = 24
"""Tensor reads and writes: mul_ 2 (decay), mul_ 2, add_ 3, abs 2, mul 2, add 2, div 3, clamp 2, sign 2, addcmul_ 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SophiaG(PerParameterProgram):
    """p <- p - lr sign(m) min(|m| / (rho bs h + 1e-15), 1), with m of gradients and h of their squares."""

    creates_all_states_first: ClassVar[bool] = True

    @property
    def local_names(self) -> tuple[str, ...]:
        """``ratio`` outlives its iteration."""
        return ("ratio",)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Momentum and Hessian estimate in the parameter's dtype: 2 e s bytes, and ``step`` on the CPU.

        Source: arXiv:2305.14342, Algorithm 3; Liuhong99/Sophia, sophia.py, ``step()``.
        Assumes: not capturable.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        return (
            StateTensor(name="step", nbytes=STEP_BYTES, on_device=False),
            StateTensor(name="exp_avg", nbytes=nbytes),
            StateTensor(name="hessian", nbytes=nbytes),
        )

    def update(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        phase: StepPhase,  # noqa: ARG002 (every step is alike)
    ) -> None:
        """``ratio = (exp_avg.abs() / (rho * bs * hess + 1e-15)).clamp(None, 1)``, then ``exp_avg.sign()``."""
        nbytes = parameter.numel * self.param_dtype_bytes
        magnitude = frame.temporary(nbytes, "exp_avg.abs")
        scaled = frame.temporary(nbytes, "scaled hessian")
        denominator = frame.temporary(nbytes, "denominator")
        frame.free(scaled)
        quotient = frame.temporary(nbytes, "quotient")
        frame.free(magnitude, denominator)
        ratio = frame.temporary(nbytes, "ratio")
        frame.free(quotient)
        frame.assign("ratio", ratio)
        frame.free(frame.temporary(nbytes, "exp_avg.sign"))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 24 e s.

        Source: Liuhong99/Sophia, sophia.py, `_single_tensor_sophiag`.
        Assumes: no reuse in cache; the Hessian's estimate, once in ten steps, is left out.
        """
        return StepWork(0, ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
