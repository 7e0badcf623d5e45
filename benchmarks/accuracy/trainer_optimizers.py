"""Optimizers of transformers' Trainer in January 2022, as it groups and steps them, tensor by tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers import AdamW8bit, OptimizerProgram
from whatfits.estimator.memory.optimizers.device_scratch import record_column_reduction, record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["OPTIMIZERS", "TrainerAdafactor", "TrainerAdam8bit", "TrainerAdamW"]

BYTES = 4
"""Everything is fp32."""
BLOCK_SIZE = 2048
"""Source: arXiv:2110.02861, the paper of 8-bit optimizers. Assumes: the page's release, which it does not name, too."""
_NOT_TIMED = StepWork(0, 0, 0, None)


class _Grouped(PerParameterProgram):
    """Parameters with weight decay first.

    Source: transformers 4.15, trainer.py, `create_optimizer`: neither biases nor LayerNorm's, which are all vectors.
    """

    def in_order(self, parameters: Sequence[ParameterTensor]) -> Parameters:
        """Matrices, then vectors."""
        return Parameters(sorted(parameters, key=lambda p: len(p.shape) == 1))

    def update_work(self, parameter: ParameterTensor) -> StepWork:  # noqa: ARG002 (no row is timed)
        """Nothing: bytes alone are compared."""
        return _NOT_TIMED


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAdamW(_Grouped):
    """`transformers.AdamW`: each parameter's states are made just before its first update.

    Source: transformers 4.15, optimization.py, `AdamW.step`, as copies in other projects have it. Assumes: no weight decay,
    the Trainer's default.
    """

    param_dtype_bytes: int = BYTES

    @property
    def local_names(self) -> tuple[str, ...]:
        """``denom`` outlives its iteration."""
        return ("denom",)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Two moments; ``step`` is a Python number."""
        return adamw_states(parameter, self.param_dtype_bytes)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """``denom = exp_avg_sq.sqrt().add_(eps)``."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)
        frame.assign("denom", frame.temporary(parameter.numel * self.param_dtype_bytes, "denom"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAdafactor(_Grouped):
    """`transformers.Adafactor` with the Trainer's ``scale_parameter=False, relative_step=False``.

    Source: transformers 5.23, optimization.py, `Adafactor.step`, traced on `meta` (tests/accuracy/test_bert.py). Assumes:
    4.15 allocates alike; no first moment, no weight decay.
    """

    param_dtype_bytes: int = BYTES

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of ``step`` that hold tensors, in its order."""
        return ("rms", "update")

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Row and column means of a matrix, the second moment of a vector; ``RMS`` is a tensor too once computed."""
        if len(parameter.shape) == 1:
            return (StateTensor(name="exp_avg_sq", nbytes=parameter.numel * BYTES), _RMS)
        rows, columns = parameter.shape
        return (
            StateTensor(name="exp_avg_sq_row", nbytes=rows * BYTES),
            StateTensor(name="exp_avg_sq_col", nbytes=columns * BYTES),
            _RMS,
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """``update`` is of the parameter's size, and so is one more tensor beside it at times."""
        *means, rms = self.states(parameter)
        if phase is StepPhase.first:
            for state in means:
                frame.state(parameter.name, state.name, state.nbytes)
        norm = frame.temporary(BYTES, "norm")
        record_full_reduction(frame, parameter.shape)
        frame.state(parameter.name, rms.name, rms.nbytes)
        frame.free(norm)
        if phase is not StepPhase.first:
            frame.drop_state(parameter.name, rms.name, rms.nbytes)
        nbytes = parameter.numel * BYTES
        square = frame.temporary(nbytes, "grad**2")
        update = frame.temporary(nbytes, "update")
        frame.free(square)
        frame.assign("update", update)
        if len(parameter.shape) > 1:
            self._approximate(frame, parameter)
        else:
            frame.assign("update", frame.temporary(nbytes, "exp_avg_sq.rsqrt"))
        self._clip(frame, parameter)
        negative = frame.temporary(nbytes, "-update")
        frame.free(negative)

    def _approximate(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``update = _approx_sq_grad(row, col)`` after both means took in the new square."""
        rows, columns = parameter.shape
        row_mean = frame.temporary(rows * BYTES, "update.mean(-1)")
        frame.free(row_mean)
        column_mean = frame.temporary(columns * BYTES, "update.mean(-2)")
        record_column_reduction(frame, parameter.shape)
        frame.free(column_mean)
        mean = frame.temporary(BYTES, "row.mean")
        record_full_reduction(frame, (rows,))
        row_factor = frame.temporary(rows * BYTES, "r_factor")
        frame.free(mean)
        column_factor = frame.temporary(columns * BYTES, "c_factor")
        product = frame.temporary(parameter.numel * BYTES, "update")
        frame.free(row_factor, column_factor)
        frame.assign("update", product)

    def _clip(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``update.div_((rms(update) / threshold).clamp_(1))``."""
        norm = frame.temporary(BYTES, "norm")
        record_full_reduction(frame, parameter.shape)
        root = frame.temporary(BYTES, "rms")
        frame.free(norm)
        ratio = frame.temporary(BYTES, "ratio")
        frame.free(root, ratio)


_RMS = StateTensor(name="RMS", nbytes=BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerAdam8bit(AdamW8bit):
    """`bitsandbytes.optim.Adam8bit` of 2021, grouped as the page groups it: blocks of 2,048 values."""

    param_dtype_bytes: int = BYTES
    block_size: int = BLOCK_SIZE

    def in_order(self, parameters: Sequence[ParameterTensor]) -> Parameters:
        """Matrices, then vectors."""
        return Parameters(sorted(parameters, key=lambda p: len(p.shape) == 1))


OPTIMIZERS: dict[str, OptimizerProgram] = {
    "adamw": TrainerAdamW(),
    "Adafactor": TrainerAdafactor(),
    "Adam8bit bitsandbytes": TrainerAdam8bit(),
}
"""By the rows' names."""
