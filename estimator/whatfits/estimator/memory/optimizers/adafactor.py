"""Adafactor: the second moment as an outer product of row and column means.

Noam Shazeer, Mitchell Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235,
Algorithms 2 and 4. Allocations are those of `torch.optim.Adafactor` (PyTorch 2.13), whose default is the loop over
parameters. Hugging Face's and pytorch-optimizer's keep other states (fp32 means; a bf16 momentum).
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["Adafactor"]

STEP_BYTES = 4
MATRIX_ACCESSES = 17
"""Tensor reads and writes: norm 1, row means 1, column means 1, outer product 1, div_ 2, clamp_ 2, rsqrt_ 2, mul_ 3,
norm 1, add_ 3."""
VECTOR_ACCESSES = 19
"""Tensor reads and writes: norm 1, square 2, lerp_ 3, clone 2, clamp_ 2, rsqrt_ 2, mul_ 3, norm 1, add_ 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor(PerParameterProgram):
    """V = r c / mean(r), u = g / sqrt(V), p <- p - lr u / max(1, rms(u)): r and c average g^2 over columns and rows."""

    creates_all_states_first: ClassVar[bool] = True

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of `_single_tensor_adafactor` that hold temporaries; `update` is `var_estimate`, in place."""
        return ("row_mean", "col_mean", "var_estimate", "grad_squared", "update")

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Row and column means of an m x n matrix, (m + n) s bytes; the second moment of a vector, e s.

        Source: torch/optim/_adafactor.py, `_init_group`.
        Assumes: no first moment, as torch has none; ``step`` is a CPU scalar.
        """
        s = self.param_dtype_bytes
        step = StateTensor(name="step", nbytes=STEP_BYTES, on_device=False)
        if len(parameter.shape) == 1:
            return (step, StateTensor(name="variance", nbytes=parameter.numel * s))
        rows, columns = parameter.shape
        return (
            step,
            StateTensor(name="row_var", nbytes=rows * s),
            StateTensor(name="col_var", nbytes=columns * s),
        )

    def update(
        self,
        frame: Frame,
        parameter: ParameterTensor,
        phase: StepPhase,  # noqa: ARG002 (every step is alike)
    ) -> None:
        """One tensor of the parameter's size: the variance estimate, which becomes the update in place."""
        nbytes = parameter.numel * self.param_dtype_bytes
        self._record_norm(frame, parameter)
        if len(parameter.shape) == 1:
            frame.assign("grad_squared", frame.temporary(nbytes, "grad_squared"))
            estimate = frame.temporary(nbytes, "var_estimate")
            frame.assign("var_estimate", estimate)
        else:
            rows, columns = parameter.shape
            frame.assign("row_mean", frame.temporary(rows * self.param_dtype_bytes, "row_mean"))
            means = frame.temporary(columns * self.param_dtype_bytes, "col_mean")
            record_column_reduction(frame, parameter.shape)
            frame.assign("col_mean", means)
            estimate = frame.temporary(nbytes, "var_estimate")
            frame.assign("var_estimate", estimate)
            mean = frame.temporary(self.param_dtype_bytes, "mean of row_var")
            record_full_reduction(frame, (rows,))
            frame.free(mean)
        frame.assign("update", estimate)
        self._record_norm(frame, parameter)

    def _record_norm(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``tensor.norm(2).item()``."""
        norm = frame.temporary(self.param_dtype_bytes, "norm")
        record_full_reduction(frame, parameter.shape)
        frame.free(norm)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator, and the outer product's FLOPs.

        bytes = 17 e s (vectors 19 e s); FLOPs = 2 m n.

        Source: torch/optim/_adafactor.py, `_single_tensor_adafactor`.
        Assumes: no weight decay (torch's default); no reuse in cache; means are too small to count.
        """
        is_vector = len(parameter.shape) == 1
        accesses = VECTOR_ACCESSES if is_vector else MATRIX_ACCESSES
        flops = 0 if is_vector else 2 * parameter.numel
        return StepWork(flops, accesses * parameter.numel * self.param_dtype_bytes, 0, None)
