"""GWT and FRUGAL as `whatfits.optim_impls` writes them: AdamW on a part of each matrix, something cheaper on the rest.

The formulas are those of the declarations there, equal to traced steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.frugal import MOMENTS, Frugal
from whatfits.estimator.memory.optimizers.own_elementwise import CHUNK, OwnProgram, piece_rows
from whatfits.estimator.memory.optimizers.parameters import Parameters, is_linear_matrix
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import FUSED_ADAMW_ACCESSES, STEP_BYTES, adamw_states

__all__ = ["FrugalColumns", "FrugalElements", "FrugalProjected", "Gwt", "OwnFrugal"]

FP32_BYTES = 4
INDEX_BYTES = 8
SHORT_INDEX_BYTES = 4

SIGN_ACCESSES = 3
"""Parameter read and written, gradient read."""
GWT_ACCESSES = 4
"""Gradient read twice, parameter read and written."""
GWT_COARSE_ACCESSES = 23
"""Of tensors of the coarse shape: sums 1, lerp_ 3, mul_ 2, addcmul_ 3, sqrt 2, add_ 2, sub 3, div_ 3, mul_ 2, and both
factors read by the update."""
MOMENT_ACCESSES = 4
"""Both moments read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitProgram(OwnProgram):
    """Base of the methods that treat matrices in their own way and step everything else by torch's fused AdamW."""

    def record_fused_adamw(self, frame: Frame) -> None:
        """The step count the kernel reads."""
        frame.free(frame.temporary(STEP_BYTES, "step"))

    def adamw_work(self, parameter: ParameterTensor, interval: int | None) -> StepWork:
        """Traffic of the fused kernel: 7 e s."""
        return StepWork(0, FUSED_ADAMW_ACCESSES * parameter.numel * self.param_dtype_bytes, 0, interval)

    def rows_bytes(self, parameter: ParameterTensor) -> int:
        """One temporary of some rows of a matrix."""
        return piece_rows(parameter.shape) * parameter.shape[1] * self.param_dtype_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gwt(SplitProgram):
    """Algorithm 1 of arXiv:2501.07237 with the Haar wavelet and no limit on the norm's growth."""

    level: int = 2

    def coarse_bytes(self, parameter: ParameterTensor) -> int:
        """Coefficients of a matrix: m ceil(n / 2^l) s bytes."""
        rows, columns = parameter.shape
        return rows * -(-columns // (1 << self.level)) * self.param_dtype_bytes

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Moments of the coarse coefficients, 2 m ceil(n / 2^l) s; AdamW's elsewhere.

        Source: arXiv:2501.07237, Algorithm 1; optim_impls/whatfits/optim_impls/gwt.py.
        Assumes: norm_growth_limit is None (the default).
        """
        if not is_linear_matrix(parameter):
            return adamw_states(parameter, self.param_dtype_bytes)
        nbytes = self.coarse_bytes(parameter)
        return tuple(StateTensor(name=name, nbytes=nbytes) for name in MOMENTS)

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Coefficients, denominators, then some rows of the update at a time."""
        self.record_states(frame, parameter, phase)
        if not is_linear_matrix(parameter):
            self.record_fused_adamw(frame)
            return
        nbytes, block = self.coarse_bytes(parameter), 2**self.level
        coarse = frame.temporary(nbytes, "coarse")
        if parameter.shape[1] % block == 0:
            frame.free(frame.temporary(block * self.param_dtype_bytes, "weights"))
        denominator = frame.temporary(nbytes, "denominator")
        scratch = frame.temporary(self.rows_bytes(parameter), "scratch")
        frame.free(scratch, denominator, coarse)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic 4 e s of the matrix and 23 e s / 2^l of its coefficients; no matrix product.

        Source: optim_impls/whatfits/optim_impls/gwt.py.
        Assumes: some rows stay in cache; one kernel per operator on the coefficients.
        """
        if not is_linear_matrix(parameter):
            return self.adamw_work(parameter, None)
        moved = GWT_ACCESSES * parameter.numel * self.param_dtype_bytes
        return StepWork(0, moved + GWT_COARSE_ACCESSES * self.coarse_bytes(parameter), 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFrugal(Frugal):
    """FRUGAL with whole tensors in turn: the published code's state, a piece of the signs as its only temporary."""

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """The change of turns where one is due, then one parameter after the other."""
        self._record_turns(frame, self.shared_states(parameters), phase)
        names = {parameter.name for parameter in self.active(parameters)}
        for parameter in parameters:
            if phase is StepPhase.first:
                for state in self.states(parameter):
                    frame.state(parameter.name, state.name, state.nbytes)
            if is_linear_matrix(parameter) and parameter.name not in names:
                nbytes = min(parameter.numel, CHUNK) * self.param_dtype_bytes
                frame.free(frame.temporary(nbytes, "signs"))
            else:
                frame.free(frame.temporary(STEP_BYTES, "step"))

    def flops_and_bytes(self, parameters: Sequence[ParameterTensor]) -> StepWork:
        """Sum of the parameters' `update_work`, and what active tensors move more: 4 e s each.

        Source: optim_impls/whatfits/optim_impls/frugal.py.
        Assumes: pieces stay in cache.
        """
        active = sum(parameter.numel for parameter in self.active(parameters))
        moved = (FUSED_ADAMW_ACCESSES - SIGN_ACCESSES) * active * self.param_dtype_bytes
        moved += sum(
            kind.occurrences * self.update_work(kind.example).bytes_moved
            for kind in Parameters.of(parameters).kinds
        )
        return StepWork(0, moved, 0, self.update_interval)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of the fused AdamW, 7 e s, or of a sign's update, 3 e s.

        Source: optim_impls/whatfits/optim_impls/frugal.py.
        Assumes: pieces stay in cache.
        """
        accesses = SIGN_ACCESSES if is_linear_matrix(parameter) else FUSED_ADAMW_ACCESSES
        return StepWork(0, accesses * parameter.numel * self.param_dtype_bytes, 0, self.update_interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrugalPart(SplitProgram):
    """Base of FRUGAL's splits inside each matrix: a part chosen anew at every refresh, with AdamW's moments."""

    density: float = 0.25
    update_interval: int = 200

    def part_bytes(self, parameter: ParameterTensor) -> tuple[StateTensor, int]:
        """What a split stores of its choice, and the bytes of each moment."""
        raise NotImplementedError

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The choice and the moments of what was chosen; AdamW's moments elsewhere.

        Source: arXiv:2411.07837, Algorithm 1; optim_impls/whatfits/optim_impls/frugal_split.py.
        Assumes: nothing.
        """
        if not is_linear_matrix(parameter):
            return adamw_states(parameter, self.param_dtype_bytes)
        chosen, moment = self.part_bytes(parameter)
        return (chosen, *(StateTensor(name=name, nbytes=moment) for name in MOMENTS))

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """The choice where one is due, then the update."""
        if not is_linear_matrix(parameter):
            self.record_states(frame, parameter, phase)
            self.record_fused_adamw(frame)
            return
        chosen, *moments = self.states(parameter)
        if phase is StepPhase.refresh:
            frame.drop_state(parameter.name, chosen.name, chosen.nbytes)
        if phase is not StepPhase.steady:
            self.record_choice(frame, parameter, chosen)
        if phase is StepPhase.first:
            for moment in moments:
                frame.state(parameter.name, moment.name, moment.nbytes)
        self.record_update(frame, parameter)

    def record_choice(self, frame: Frame, parameter: ParameterTensor, chosen: StateTensor) -> None:
        """Record how the part is chosen."""
        raise NotImplementedError

    def record_update(self, frame: Frame, parameter: ParameterTensor) -> None:
        """Record a matrix' update."""
        raise NotImplementedError

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of the signs, 3 e s, and of the part's moments, 4 each.

        Source: optim_impls/whatfits/optim_impls/frugal_split.py.
        Assumes: pieces stay in cache, the part's own elements among them.
        """
        if not is_linear_matrix(parameter):
            return self.adamw_work(parameter, self.update_interval)
        _, moment = self.part_bytes(parameter)
        moved = SIGN_ACCESSES * parameter.numel * self.param_dtype_bytes + MOMENT_ACCESSES * moment
        return StepWork(0, moved, 0, self.update_interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrugalColumns(FrugalPart):
    """Some columns of each matrix."""

    def count(self, parameter: ParameterTensor) -> int:
        """Columns with state: floor(n density)."""
        return int(parameter.shape[1] * self.density)

    def part_bytes(self, parameter: ParameterTensor) -> tuple[StateTensor, int]:
        """8 k bytes of indices, m k s per moment."""
        count = self.count(parameter)
        indices = StateTensor(name="indices", nbytes=INDEX_BYTES * count)
        return indices, parameter.shape[0] * count * self.param_dtype_bytes

    def record_choice(self, frame: Frame, parameter: ParameterTensor, chosen: StateTensor) -> None:
        """A permutation of the columns, of which the first k are sorted."""
        order = frame.temporary(INDEX_BYTES * parameter.shape[1], "order")
        frame.state(parameter.name, chosen.name, chosen.nbytes)
        places = frame.temporary(chosen.nbytes, "places")
        frame.free(places, order)

    def record_update(self, frame: Frame, parameter: ParameterTensor) -> None:
        """Scratch of some rows, and the part of them with state."""
        part = piece_rows(parameter.shape) * self.count(parameter) * self.param_dtype_bytes
        scratch = frame.temporary(self.rows_bytes(parameter), "scratch")
        chosen = frame.temporary(part, "part")
        self.record_fused_adamw(frame)
        frame.free(chosen, scratch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrugalElements(FrugalPart):
    """Some elements of each matrix."""

    def count(self, parameter: ParameterTensor) -> int:
        """Elements with state: floor(e density)."""
        return int(parameter.numel * self.density)

    def part_bytes(self, parameter: ParameterTensor) -> tuple[StateTensor, int]:
        """4 k bytes of indices, k s per moment."""
        count = self.count(parameter)
        return StateTensor(name="indices", nbytes=SHORT_INDEX_BYTES * count), count * self.param_dtype_bytes

    def record_choice(self, frame: Frame, parameter: ParameterTensor, chosen: StateTensor) -> None:
        """A permutation of the elements, of which the first k are copied and sorted."""
        order = frame.temporary(SHORT_INDEX_BYTES * parameter.numel, "order")
        first = frame.temporary(chosen.nbytes, "chosen")
        frame.free(order)
        frame.state(parameter.name, chosen.name, chosen.nbytes)
        places = frame.temporary(INDEX_BYTES * self.count(parameter), "places")
        frame.free(places, first)

    def record_update(self, frame: Frame, parameter: ParameterTensor) -> None:
        """The part with state, a piece of the signs, then pieces of the part's gradient and positions."""
        count = self.count(parameter)
        part = frame.temporary(count * self.param_dtype_bytes, "part")
        frame.free(frame.temporary(self.piece_bytes(parameter), "signs"))
        positions = frame.temporary(INDEX_BYTES * min(count, CHUNK), "positions")
        gradient = frame.temporary(min(count, CHUNK) * self.param_dtype_bytes, "gradient")
        self.record_fused_adamw(frame)
        frame.free(gradient, positions, part)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrugalProjected(FrugalPart):
    """A subspace of each matrix' shorter side: random, or the gradient's leading singular vectors."""

    is_random: bool = False

    def rank(self, parameter: ParameterTensor) -> int:
        """Density x shorter side, rounded, at least 1."""
        return max(1, round(min(parameter.shape) * self.density))

    def part_bytes(self, parameter: ParameterTensor) -> tuple[StateTensor, int]:
        """Projection, r M s, and r N s per moment."""
        rank = self.rank(parameter)
        nbytes = rank * min(parameter.shape) * self.param_dtype_bytes
        projection = StateTensor(name="projection", nbytes=nbytes)
        return projection, rank * max(parameter.shape) * self.param_dtype_bytes

    def record_choice(self, frame: Frame, parameter: ParameterTensor, chosen: StateTensor) -> None:
        """An orthonormal basis in fp32: of random numbers, or of the Gram matrix' eigenvectors."""
        side, rank = min(parameter.shape), self.rank(parameter)
        if self.is_random:
            numbers = frame.temporary(FP32_BYTES * side * rank, "numbers")
            basis = frame.temporary(FP32_BYTES * side * rank, "basis")
            triangle = frame.temporary(FP32_BYTES * rank * rank, "triangle")
            frame.free(numbers, triangle)
        else:
            copy = None
            if self.param_dtype_bytes != FP32_BYTES:
                copy = frame.temporary(FP32_BYTES * parameter.numel, "fp32 gradient")
            gram = frame.temporary(FP32_BYTES * side * side, "gram")
            if copy is not None:
                frame.free(copy)
            values = frame.temporary(FP32_BYTES * side, "eigenvalues")
            basis = frame.temporary(FP32_BYTES * side * side, "eigenvectors")
            frame.free(gram, values)
        frame.state(parameter.name, chosen.name, chosen.nbytes)
        frame.free(basis)

    def record_update(self, frame: Frame, parameter: ParameterTensor) -> None:
        """The projected gradient, its update, then some rows at a time."""
        nbytes = self.rank(parameter) * max(parameter.shape) * self.param_dtype_bytes
        low = frame.temporary(nbytes, "low")
        update = frame.temporary(nbytes, "update")
        self.record_fused_adamw(frame)
        scratch = frame.temporary(self.rows_bytes(parameter), "scratch")
        frame.free(scratch, update, low)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Three products of 2 m n r FLOPs; traffic 4 e s of the matrix and 12 of the projected gradient.

        Source: optim_impls/whatfits/optim_impls/frugal_split.py.
        Assumes: some rows stay in cache.
        """
        if not is_linear_matrix(parameter):
            return self.adamw_work(parameter, self.update_interval)
        _, moment = self.part_bytes(parameter)
        moved = (SIGN_ACCESSES + 1) * parameter.numel * self.param_dtype_bytes + 3 * MOMENT_ACCESSES * moment
        flops = 6 * parameter.numel * self.rank(parameter)
        svd = 0 if self.is_random else parameter.numel * min(parameter.shape)
        return StepWork(flops, moved, svd, self.update_interval)
