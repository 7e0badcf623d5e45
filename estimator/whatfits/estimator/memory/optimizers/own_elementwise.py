"""Lion, Adan, Sophia, SM3 and MeZO as `whatfits.optim_impls` writes them: updates of pieces that stay in cache.

Their temporaries are those of one piece, however large the parameter; the formulas are those of the declarations there,
equal to traced steps.
"""

from dataclasses import dataclass
from math import prod

from whatfits.estimator.memory.optimizers.adan import STATES as ADAN_STATES
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork

__all__ = ["CHUNK", "Mezo", "OwnAdan", "OwnLion", "OwnProgram", "OwnSophiaG", "Sm3", "piece_rows"]

CHUNK = 2**20
"""Elements of a piece (`whatfits.optim_impls.chunks.CHUNK`)."""

LION_ACCESSES = 5
"""Parameter and momentum read and written, gradient read."""
ADAN_ACCESSES = 11
"""Parameter and four states read and written, gradient read."""
SOPHIA_ACCESSES = 6
"""Parameter and momentum read and written, gradient and Hessian read."""
SM3_ACCESSES = 3
"""Parameter read and written, gradient read."""
MEZO_ACCESSES = 6
"""Parameter read and written in three sweeps."""


def piece_rows(shape: tuple[int, ...]) -> int:
    """Rows of a piece: as many as fit, at least one."""
    return max(1, min(shape[0], CHUNK // max(1, prod(shape[1:]))))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnProgram(PerParameterProgram):
    """Base of the programs of own code, whose updates leave no names bound."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update is a function call."""
        return ()

    def piece_bytes(self, parameter: ParameterTensor) -> int:
        """One temporary of a piece."""
        return min(parameter.numel, CHUNK) * self.param_dtype_bytes

    def record_states(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """The first step makes the states."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OneScratch(OwnProgram):
    """Base of the updates with one temporary of a piece."""

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """One scratch for all pieces."""
        self.record_states(frame, parameter, phase)
        frame.free(frame.temporary(self.piece_bytes(parameter), "scratch"))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLion(_OneScratch):
    """Algorithm 2 of arXiv:2302.06675, piece by piece, with one temporary of a piece."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The momentum in the parameter's dtype: e s bytes.

        Source: optim_impls/whatfits/optim_impls/lion.py.
        Assumes: nothing.
        """
        return (StateTensor(name="exp_avg", nbytes=parameter.numel * self.param_dtype_bytes),)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one pass, as a piece stays in cache: 5 e s.

        Source: optim_impls/whatfits/optim_impls/lion.py.
        Assumes: a cache of a few MiB.
        """
        return StepWork(0, LION_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAdan(OwnProgram):
    """Algorithm 1 of arXiv:2208.06677, piece by piece; the last gradient's tensor serves as scratch."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Three moments and the last gradient in the parameter's dtype: 4 e s bytes.

        Source: optim_impls/whatfits/optim_impls/adan.py.
        Assumes: nothing.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        return tuple(StateTensor(name=name, nbytes=nbytes) for name in ADAN_STATES)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """In place."""
        self.record_states(frame, parameter, phase)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one pass, as a piece stays in cache: 11 e s.

        Source: optim_impls/whatfits/optim_impls/adan.py.
        Assumes: a cache of a few MiB.
        """
        return StepWork(0, ADAN_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSophiaG(_OneScratch):
    """Algorithm 3 of arXiv:2305.14342, piece by piece, with one temporary of a piece; `update_hessian` has none."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Momentum and Hessian estimate in the parameter's dtype: 2 e s bytes.

        Source: optim_impls/whatfits/optim_impls/sophia.py.
        Assumes: nothing.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        return tuple(StateTensor(name=name, nbytes=nbytes) for name in ("exp_avg", "hessian"))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one pass, as a piece stays in cache: 6 e s.

        Source: optim_impls/whatfits/optim_impls/sophia.py.
        Assumes: a cache of a few MiB; the Hessian's estimate, once in ten steps, is left out.
        """
        return StepWork(0, SOPHIA_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sm3(OwnProgram):
    """SM3-II of arXiv:1901.11150 without momentum, some rows at a time."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """One number per index of each dimension, in the parameter's dtype: (m + n) s bytes for a matrix.

        Source: arXiv:1901.11150, section 4; optim_impls/whatfits/optim_impls/sm3.py.
        Assumes: no momentum (the default).
        """
        return tuple(
            StateTensor(name=f"accumulator_{dim}", nbytes=size * self.param_dtype_bytes)
            for dim, size in enumerate(parameter.shape or (1,))
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """New maxima of all dimensions but the first, a scratch of some rows, and one piece's maxima in turn."""
        self.record_states(frame, parameter, phase)
        rest = [size * self.param_dtype_bytes for size in parameter.shape[1:]]
        maxima = [frame.temporary(nbytes, "maxima") for nbytes in rest]
        rows = piece_rows(parameter.shape or (1,))
        scratch = frame.temporary(rows * prod(parameter.shape[1:]) * self.param_dtype_bytes, "scratch")
        for nbytes in rest:
            frame.free(frame.temporary(nbytes, "maxima of a piece"))
        frame.free(scratch, *maxima)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one pass, as some rows stay in cache: 3 e s, and 5 e s for vectors' accumulators.

        Source: optim_impls/whatfits/optim_impls/sm3.py.
        Assumes: a cache of a few MiB; the accumulators of matrices are small.
        """
        accesses = SM3_ACCESSES + (0 if len(parameter.shape) > 1 else 2)
        return StepWork(0, accesses * parameter.numel * self.param_dtype_bytes, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mezo(OwnProgram):
    """Algorithm 1 of arXiv:2305.17333: three sweeps that add noise, and two forward passes between them."""

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:  # noqa: ARG002 (nothing to say)
        """None: the noise is drawn again from its seed."""
        return ()

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:  # noqa: ARG002
        """The noise of a piece."""
        frame.free(frame.temporary(self.piece_bytes(parameter), "noise"))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of three sweeps: 6 e s.

        Source: optim_impls/whatfits/optim_impls/mezo.py.
        Assumes: the noise of a piece stays in cache; the forward passes are not the optimizer's work.
        """
        return StepWork(0, MEZO_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, None)
