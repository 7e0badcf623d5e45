"""LAMB: Adam's update scaled by the ratio of weight norm to update norm, tensor by tensor.

Yang You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962, Algorithm 2.
Allocations are those of pytorch-optimizer 4.1.0 (`pytorch_optimizer.Lamb`, multi-tensor).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH, foreach_norm_bytes
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameter_lists import ListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["Lamb"]

SHARED = ("weight_norms", "adam_norms", "trust_ratios")
"""One stacked tensor each for all parameters, of which every parameter's state holds a view."""

ACCESSES = 26
"""Tensor reads and writes: mul_ 2, add_ 3, mul_ 2, addcmul_ 3, sqrt 2, add_ 2, reciprocal_ 2, mul_ 3, two norms 2,
mul_ 2, add_ 3; the trust ratios are too small to count."""

BOOL_BYTES = 1
OWNER = "optimizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamb(ListProgram):
    """u = m / (sqrt(v) + eps), p <- p - lr u norm(p) / norm(u)."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Two moments in the parameter's dtype: 2 e s bytes.

        Source: arXiv:1904.00962, Algorithm 2; pytorch_optimizer/optimizer/lamb.py, `init_group`.
        Assumes: no AdaNorm.
        """
        return adamw_states(parameter, self.param_dtype_bytes)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The last norms and ratios of n parameters: 3 n s bytes.

        Source: pytorch_optimizer/optimizer/lamb.py, `_step_foreach`: ``torch.stack`` of the norms.
        Assumes: all parameters of one dtype on one device.
        """
        nbytes = len(parameters) * self.param_dtype_bytes
        return tuple(StateTensor(name=name, nbytes=nbytes) for name in SHARED) if parameters else ()

    def record_lists(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """The list of updates lives until the end; the norms and ratios of the step before go when replaced."""
        updates = self.temporaries(frame, parameters, "updates")
        self._record_norms(frame, parameters, SHARED[0])
        self._record_norms(frame, parameters, SHARED[1])
        self._record_ratios(frame, len(parameters))
        if phase is not StepPhase.first:
            for name in SHARED:
                frame.drop_state(OWNER, name, len(parameters) * self.param_dtype_bytes)
        frame.free(*reversed(updates))

    def _record_norms(self, frame: Frame, parameters: Sequence[ParameterTensor], name: str) -> None:
        """``torch.stack(torch._foreach_norm(...))``."""
        scratch = frame.temporary(foreach_norm_bytes(p.numel for p in parameters), DEVICE_SCRATCH)
        norms = [frame.temporary(self.param_dtype_bytes, "norm") for _ in parameters]
        frame.free(scratch)
        frame.state(OWNER, name, len(parameters) * self.param_dtype_bytes)
        frame.free(*reversed(norms))

    def _record_ratios(self, frame: Frame, count: int) -> None:
        """``torch.where((weight_norms != 0) & (p_norms != 0), weight_norms / (p_norms + eps), 1.0)``."""
        flags = [frame.temporary(count * BOOL_BYTES, "norm != 0") for _ in range(2)]
        mask = frame.temporary(count * BOOL_BYTES, "both != 0")
        frame.free(*flags)
        denominator = frame.temporary(count * self.param_dtype_bytes, "update norm + eps")
        ratio = frame.temporary(count * self.param_dtype_bytes, "ratio")
        frame.free(denominator)
        one = frame.temporary(self.param_dtype_bytes, "1.0")
        frame.state(OWNER, SHARED[2], count * self.param_dtype_bytes)
        frame.free(one, mask, ratio)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 26 e s.

        Source: pytorch_optimizer/optimizer/lamb.py, `_step_foreach`.
        Assumes: no weight decay, no clipping (the library's defaults); no reuse in cache.
        """
        return StepWork(0, ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
