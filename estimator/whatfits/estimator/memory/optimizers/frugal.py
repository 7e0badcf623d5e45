"""FRUGAL: AdamW for some of the linear layers' tensors at a time, the gradient's sign for the others.

Philip Zmushko, Aleksandr Beznosikov, Martin Takac, Samuel Horvath: FRUGAL: Memory-Efficient Optimization by Reducing
State Overhead for Scalable Training, arXiv:2411.07837, Algorithm 1. Allocations are those of the authors' code
(fzmushko/FRUGAL, commit c7ebe4c, frugal/proj_optimizer_templates.py, `BlockOptimizer`, and frugal/adamw.py), found by
tracing its step; that code needs an older torch than this one, and no package of it exists.

Modelled is what its scripts call ``--optimizer frugal``: whole tensors are state-full in turn, round(n density) of the
n linear weights, from the last to the first (`block_order` descending). A rank stands for the density, as in its
fine-tuning script: density = rank / hidden size. Its projections (SVD, random columns) are other methods there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.low_rank import DEFAULT_UPDATE_INTERVAL
from whatfits.estimator.memory.optimizers.parameters import Parameters, is_linear_matrix
from whatfits.estimator.memory.optimizers.per_parameter import device_bytes
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states
from whatfits.estimator.memory.optimizers.whole_step import WholeStepProgram

__all__ = ["Frugal"]

OWNER = "optimizer"
MOMENTS = ("exp_avg", "exp_avg_sq")

ADAMW_ACCESSES = 26
"""Tensor reads and writes: mul_ 2 (decay), mul_ 2, add_ 3, mul_ 2, addcmul_ 3, sqrt 2, div_ 2, add_ 2, div 3, mul 2,
add_ 3."""
SIGN_ACCESSES = 9
"""Tensor reads and writes: mul_ 2 (decay), sign 2, mul 2, add_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frugal(WholeStepProgram):
    """p <- p - lr Adam(g) for active tensors and everything that is no linear layer, p <- p - lr sign(g) for the rest.

    The moments of the active tensors belong to whichever are active; they count as shared state.
    """

    rank: int
    update_interval: int = DEFAULT_UPDATE_INTERVAL

    def active(self, parameters: Sequence[ParameterTensor]) -> list[ParameterTensor]:
        """The tensors that are state-full first: the last round(n rank / hidden size) linear weights, backwards.

        Source: frugal/proj_optimizer_templates.py, `BlockOptimizer`; utils/training_utils.py, `get_density`.
        Assumes: the hidden size is the largest shorter side; later blocks have tensors of the same shapes, as where
            whole layers are active.
        """
        shared = [parameter for parameter in parameters if is_linear_matrix(parameter)]
        hidden_size = max((min(parameter.shape) for parameter in shared), default=1)
        count = round(len(shared) * min(1.0, self.rank / hidden_size))
        return shared[::-1][:count]

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """AdamW's moments, 2 e s; nothing of its own for a linear weight, whose turn comes and goes.

        Source: frugal/adamw.py, `_init_state`.
        Assumes: the step counter is a Python number.
        """
        return () if is_linear_matrix(parameter) else adamw_states(parameter, self.param_dtype_bytes)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The active tensors' moments: 2 e s for each."""
        return tuple(
            StateTensor(name=f"{moment} of active tensor {number}", nbytes=p.numel * self.param_dtype_bytes)
            for number, p in enumerate(self.active(parameters))
            for moment in MOMENTS
        )

    def state_bytes(self, parameters: Sequence[ParameterTensor]) -> int:
        """Device bytes of all persistent state; which tensors are active depends on all of them."""
        parameters = Parameters.of(parameters)
        key = ("states", parameters.kind_numbers)
        total = self._evaluated.peaks.get(key)
        if total is None:
            total = device_bytes(self.shared_states(parameters))
            total += sum(
                kind.occurrences * device_bytes(self.states(kind.example)) for kind in parameters.kinds
            )
            self._evaluated.peaks[key] = total
        return total

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """All that is no linear weight, then the change of turns where one is due, then the linear weights."""
        for parameter in parameters:
            if not is_linear_matrix(parameter):
                if phase is StepPhase.first:
                    for state in self.states(parameter):
                        frame.state(parameter.name, state.name, state.nbytes)
                self._record_adamw(frame, parameter)
        self._record_turns(frame, self.shared_states(parameters), phase)
        names = {parameter.name for parameter in self.active(parameters)}
        for parameter in filter(is_linear_matrix, parameters):
            if parameter.name in names:
                self._record_adamw(frame, parameter)
            else:
                self._record_sign(frame, parameter)
        frame.clear("update")

    def _record_turns(self, frame: Frame, shared: Sequence[StateTensor], phase: StepPhase) -> None:
        """All active tensors lose their moments, then as many others get some."""
        if phase is StepPhase.refresh:
            for state in self._in_order_of_parameters(shared):
                frame.drop_state(OWNER, state.name, state.nbytes)
        if phase is not StepPhase.steady:
            for state in shared:
                frame.state(OWNER, state.name, state.nbytes)

    def _in_order_of_parameters(self, shared: Sequence[StateTensor]) -> list[StateTensor]:
        """The moments of active tensors, from the first parameter's to the last's."""
        pairs = [shared[start : start + len(MOMENTS)] for start in range(0, len(shared), len(MOMENTS))]
        return [state for pair in reversed(pairs) for state in pair]

    def _record_adamw(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``exp_avg / denom * (-step_size)``."""
        nbytes = parameter.numel * self.param_dtype_bytes
        denominator = frame.temporary(nbytes, "denom")
        quotient = frame.temporary(nbytes, "exp_avg / denom")
        update = frame.temporary(nbytes, "update")
        frame.free(quotient, denominator)
        frame.assign("update", update)

    def _record_sign(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``-inactive_lr * grad.sign()``."""
        nbytes = parameter.numel * self.param_dtype_bytes
        sign = frame.temporary(nbytes, "grad.sign")
        update = frame.temporary(nbytes, "update")
        frame.free(sign)
        frame.assign("update", update)

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        """Sum of the parameters' `update_work`, and what active tensors move more: 17 e s each.

        Source: frugal/adamw.py, `_compute_update`; frugal/proj_optimizer_templates.py.
        Assumes: one kernel per operator, no reuse in cache.
        """
        active = sum(parameter.numel for parameter in self.active(parameters))
        extra = (ADAMW_ACCESSES - SIGN_ACCESSES) * active * self.param_dtype_bytes
        moved = extra + sum(
            kind.occurrences * self.update_work(kind.example).bytes_moved
            for kind in Parameters.of(parameters).kinds
        )
        return StepWork(0, moved, 0, self.update_interval)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of AdamW as separate kernels, 26 e s, or of a sign's update, 9 e s.

        Source: frugal/adamw.py, `_compute_update`; frugal/proj_optimizer_templates.py, ``step``.
        Assumes: one kernel per operator, no reuse in cache.
        """
        accesses = SIGN_ACCESSES if is_linear_matrix(parameter) else ADAMW_ACCESSES
        return StepWork(0, accesses * parameter.numel * self.param_dtype_bytes, 0, self.update_interval)
