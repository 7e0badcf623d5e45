"""CAME: Adafactor's factored second moment, and a second factored one for how far updates stray from their mean.

Yang Luo, Xiaozhe Ren, Zangwei Zheng, Zhuo Jiang, Xin Jiang, Yang You: CAME: Confidence-guided Adaptive Memory Efficient
Optimization, arXiv:2307.02047, Algorithm 2. Allocations are those of pytorch-optimizer 4.1.0 (`pytorch_optimizer.CAME`,
multi-tensor: vectors first, then matrices).

Differs from the authors' came-pytorch, which keeps every state in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import (
    DEVICE_SCRATCH,
    foreach_norm_bytes,
    record_column_reduction,
    record_full_reduction,
)
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.parameter_lists import ListProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["Came"]

RMS = "RMS"
"""State: the parameter's root mean square, a tensor of one number that each step replaces."""

MATRIX_ACCESSES = 33
"""Tensor reads and writes: norm 1, square 2, add_ 2, means 2, product 1, mul_ 3, norm 1, div_ 2, lerp_ 3, sub 3, pow_ 2,
add_ 2, means 2, product 1, mul_ 3, add_ 3."""
VECTOR_ACCESSES = 24
"""Tensor reads and writes: norm 1, square 2, add_ 2, mul_ 2, add_ 3, rsqrt 2, mul_ 3, norm 1, div_ 2, lerp_ 3, add_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Came(ListProgram):
    """u = g / sqrt(r c / mean(r)), m of u / max(1, rms(u)), p <- p - lr m / sqrt(R C / mean(R)), R, C of (u - m)^2."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The momentum, four means of a matrix or one second moment, and the RMS: (e + 2 (m + n) + 1) s, (2 e + 1) s.

        Source: arXiv:2307.02047, Algorithm 2; pytorch_optimizer/optimizer/came.py, `init_group`.
        Assumes: no `ams_bound`.
        """
        s = self.param_dtype_bytes
        sizes = {"exp_avg": parameter.numel}
        if len(parameter.shape) == 1:
            sizes["exp_avg_sq"] = parameter.numel
        else:
            rows, columns = parameter.shape
            sizes |= {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns}
            sizes |= {"exp_avg_res_row": rows, "exp_avg_res_col": columns}
        sizes[RMS] = 1
        return tuple(StateTensor(name=name, nbytes=numel * s) for name, numel in sizes.items())

    def begin(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """The first step creates every state but the RMS, which is a Python number until its norm is taken."""
        if phase is StepPhase.first:
            for parameter in parameters:
                for state in self.states(parameter):
                    if state.name != RMS:
                        frame.state(parameter.name, state.name, state.nbytes)

    def record_lists(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """Vectors, then matrices."""
        vectors = [p for p in parameters if len(p.shape) == 1]
        matrices = [p for p in parameters if len(p.shape) > 1]
        if vectors:
            self._record_rms(frame, vectors, phase)
            self._record_vectors(frame, vectors)
        if matrices:
            self._record_rms(frame, matrices, phase)
            self._record_matrices(frame, matrices)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """A list of one."""
        self.record_lists(frame, (parameter,), phase)

    def _record_rms(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        """``torch._foreach_norm(params)``, each kept in place of the step before's."""
        scratch = frame.temporary(foreach_norm_bytes(p.numel for p in parameters), DEVICE_SCRATCH)
        for parameter in parameters:
            frame.state(parameter.name, RMS, self.param_dtype_bytes)
        frame.free(scratch)
        if phase is not StepPhase.first:
            for parameter in parameters:
                frame.drop_state(parameter.name, RMS, self.param_dtype_bytes)

    def _record_vectors(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        squares = self.temporaries(frame, parameters, "squares")
        updates = self.temporaries(frame, parameters, "updates")
        frame.free(*reversed(squares))
        clipping = self._record_clipping(frame, parameters)
        frame.free(*reversed(updates), *reversed(clipping))

    def _record_matrices(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        """Two lists of full size live to the end; the loop variable holds the last update a little longer."""
        updates = self.temporaries(frame, parameters, "updates")
        self._record_factors(frame, parameters)
        clipping = self._record_clipping(frame, parameters)
        residuals = self.temporaries(frame, parameters, "residuals")
        self._record_factors(frame, parameters)
        frame.free(*reversed(updates[:-1]), updates[-1], *reversed(clipping), *reversed(residuals))

    def _record_clipping(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> list[Block]:
        """``(update.norm(2) / sqrt(numel) / threshold).clamp_(min=1)`` of each update."""
        clipping = []
        for parameter in parameters:
            norm = frame.temporary(self.param_dtype_bytes, "norm")
            record_full_reduction(frame, parameter.shape)
            rms = frame.temporary(self.param_dtype_bytes, "rms")
            frame.free(norm)
            clipping.append(frame.temporary(self.param_dtype_bytes, "clipping"))
            frame.free(rms)
        return clipping

    def _record_factors(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        """Lists of row and of column means; then, matrix by matrix, the inverse roots their product is made of."""
        s = self.param_dtype_bytes
        means = [frame.temporary(p.shape[0] * s, "row means") for p in parameters]
        frame.free(*reversed(means))
        means = []
        for parameter in parameters:
            means.append(frame.temporary(parameter.shape[1] * s, "column means"))
            record_column_reduction(frame, parameter.shape)
        frame.free(*reversed(means))
        for parameter in parameters:
            rows, columns = parameter.shape
            mean = frame.temporary(s, "mean of row means")
            record_full_reduction(frame, (rows,))
            row_factor = frame.temporary(rows * s, "row factor")
            frame.free(mean)
            column_factor = frame.temporary(columns * s, "column factor")
            frame.free(row_factor, column_factor)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator.

        bytes = 33 e s (vectors 24 e s).

        Source: pytorch_optimizer/optimizer/came.py, `_step_foreach`.
        Assumes: no weight decay (the library's default); means are too small to count; no reuse in cache.
        """
        accesses = VECTOR_ACCESSES if len(parameter.shape) == 1 else MATRIX_ACCESSES
        return StepWork(0, accesses * parameter.numel * self.param_dtype_bytes, 0, None)
