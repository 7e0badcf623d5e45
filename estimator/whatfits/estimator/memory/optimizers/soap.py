"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Nikhil Vyas, Depen Morwani, Rosie Zhao, Mujin Kwun, Itai Shapira, David Brandfonbrener, Lucas Janson, Sham Kakade: SOAP:
Improving and Stabilizing Shampoo using Adam, arXiv:2409.11321, Algorithm 3. Allocations are those of pytorch-optimizer
4.1.0 (pytorch_optimizer/optimizer/soap.py); its first and steady steps equal those recorded on an H100
(benchmarks/gpu_recordings, `steps`), a refresh was not recorded.

As in the authors' code (nikhilvyas/SOAP) the first step makes the preconditioners and updates nothing, and sides above
10,000 have none. The library also keeps preconditioners of embeddings and head, on their shorter side.
"""

from dataclasses import dataclass
from itertools import product

from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH, record_column_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.linalg_scratch import record_eigh, record_qr
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states
from whatfits.estimator.memory.optimizers.whole_step import WholeStepProgram

__all__ = ["MAX_PRECONDITION_DIM", "PRECONDITION_FREQUENCY", "Soap"]

MAX_PRECONDITION_DIM = 10_000
"""Longest side with a preconditioner (`max_precondition_dim`)."""
PRECONDITION_FREQUENCY = 10
"""Steps between two refreshes of the eigenbases (`precondition_frequency`)."""

FP32_BYTES = 4
FP64_BYTES = 8
INDEX_BYTES = 8
INFO_BYTES = 4

LOCAL_NAMES = ("grad_projected", "exp_avg_sq", "de_nom", "exp_avg_projected", "norm_grad")
"""The slots of ``step()`` that hold temporaries."""

ELEMENTWISE_ACCESSES = 20
"""Full-size reads and writes: lerp_ 3, square 2, lerp_ 3, sqrt 2, add_ 2, div 3, add_ 3, mul_ 2 (decay)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Soap(WholeStepProgram):
    """L <- lerp(L, G G^T), R <- lerp(R, G^T G), G' = Q_L^T G Q_R, p <- p - lr Q_L (Q_L^T m Q_R / sqrt(v)) Q_R^T.

    Q_L and Q_R are eigenvectors of L and R, refreshed by one step of power iteration and a QR every 10 steps.
    """

    def sides(self, parameter: ParameterTensor) -> tuple[int | None, ...]:
        """The sides of a matrix, None for those without a preconditioner; nothing for a vector."""
        if len(parameter.shape) == 1:
            return ()
        return tuple(side if side <= MAX_PRECONDITION_DIM else None for side in parameter.shape)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Adam's two moments, 2 e s, and for each side d up to 10,000 a preconditioner and its basis, 2 d^2 s.

        Source: arXiv:2409.11321 section 4; pytorch_optimizer/optimizer/soap.py, `init_pre_conditioner`.
        Assumes: `precondition_1d` and `merge_dims` off, the defaults.
        """
        s = self.param_dtype_bytes
        sides = [(index, side) for index, side in enumerate(self.sides(parameter)) if side is not None]
        preconditioners = (
            StateTensor(name=f"{name}{index}", nbytes=side * side * s)
            for name, (index, side) in product(("GG", "Q"), sides)
        )
        return (*adamw_states(parameter, s), *preconditioners)

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """The first step makes every parameter's state, and nothing else."""
        for parameter in parameters:
            if phase is StepPhase.first:
                self._record_first(frame, parameter)
            else:
                self._record_update(frame, parameter, phase)
        frame.leave(LOCAL_NAMES)

    def _record_first(self, frame: Frame, parameter: ParameterTensor) -> None:
        for state in self.states(parameter):
            if not state.name.startswith("Q"):
                frame.state(parameter.name, state.name, state.nbytes)
        self._record_outer_products(frame, parameter)
        for index, side in enumerate(self.sides(parameter)):
            if side is not None:
                self._record_basis(frame, parameter, index, side)
        frame.clear("eigenvalues")
        frame.clear("outer_product")

    def _record_outer_products(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``outer_product = torch.tensordot(grad, grad, ...)`` of each side; the name outlives the loop."""
        for side in self.sides(parameter):
            if side is not None:
                nbytes = side * side * self.param_dtype_bytes
                frame.assign("outer_product", frame.temporary(nbytes, "outer product"))

    def _record_basis(self, frame: Frame, parameter: ParameterTensor, index: int, side: int) -> None:
        """`get_orthogonal_matrix`: ``torch.linalg.eigh(m + 1e-30 * torch.eye(...))``, its vectors flipped.

        eigh refuses bf16, after it has made its outputs; the code then goes to fp64.
        """
        s, squared = self.param_dtype_bytes, side * side
        shifted = self._shifted(frame, squared * s)
        element = FP32_BYTES
        if s != FP32_BYTES:
            self._record_refusal(frame, side, shifted)
            element = FP64_BYTES
            copy = frame.temporary(squared * element, "fp64 preconditioner")
            shifted = self._shifted(frame, squared * element, copy)
        vectors = frame.temporary(squared * element, "eigenvectors")
        values = frame.temporary(side * element, "eigenvalues")
        record_eigh(frame, side, element)
        frame.free(shifted)
        frame.assign("eigenvalues", values)
        if element == FP64_BYTES:
            cast = frame.temporary(squared * s, "eigenvectors")
            frame.free(vectors)
            vectors = cast
        frame.state(parameter.name, f"Q{index}", squared * s)
        frame.free(vectors)

    def _shifted(self, frame: Frame, nbytes: int, *copies: Block) -> Block:
        """``m + 1e-30 * torch.eye(...)``, and the end of the copy of m it is computed from."""
        eye = frame.temporary(nbytes, "eye")
        scaled = frame.temporary(nbytes, "1e-30 * eye")
        frame.free(eye)
        shifted = frame.temporary(nbytes, "m + 1e-30 * eye")
        frame.free(*copies, scaled)
        return shifted

    def _record_refusal(self, frame: Frame, side: int, shifted: Block) -> None:
        vectors = frame.temporary(side * side * self.param_dtype_bytes, DEVICE_SCRATCH)
        values = frame.temporary(side * self.param_dtype_bytes, DEVICE_SCRATCH)
        info = frame.temporary(INFO_BYTES, DEVICE_SCRATCH)
        frame.free(info, vectors, values, shifted)

    def _record_update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Project the gradient and the momentum, divide, project back; then the preconditioners."""
        nbytes = parameter.numel * self.param_dtype_bytes
        self._project(frame, parameter, "grad_projected", None)
        frame.clear("exp_avg_sq")
        frame.free(frame.temporary(nbytes, "grad_projected.square"))
        frame.assign("de_nom", frame.temporary(nbytes, "de_nom"))
        self._project(frame, parameter, "exp_avg_projected", None)
        self._project(frame, parameter, "norm_grad", frame.temporary(nbytes, "exp_avg_projected / de_nom"))
        self._record_outer_products(frame, parameter)
        if phase is StepPhase.refresh and any(self.sides(parameter)):
            self._record_refresh(frame, parameter)
        frame.clear("outer_product")

    def _project(self, frame: Frame, parameter: ParameterTensor, name: str, projected: Block | None) -> None:
        """`project`: a product for each side, which takes the place of the one before; a view without sides."""
        nbytes = parameter.numel * self.param_dtype_bytes
        for side in self.sides(parameter):
            if side is not None:
                following = frame.temporary(nbytes, "projection")
                if projected is not None:
                    frame.free(projected)
                projected = following
        if projected is None:
            frame.clear(name)
        else:
            frame.assign(name, projected)

    def _record_refresh(self, frame: Frame, parameter: ParameterTensor) -> None:
        """`get_orthogonal_matrix_qr`: the second moment's rows and columns reordered, and a new basis of each side."""
        s = self.param_dtype_bytes
        sides = [(index, side) for index, side in enumerate(self.sides(parameter)) if side is not None]
        for number, (index, side) in enumerate(sides, start=1):
            matrix = frame.temporary(side * side * s, "matrix_product")
            frame.assign("matrix_product", matrix)
            self._record_order(frame, side)
            self._record_reordered(frame, parameter, is_last=number == len(sides))
            frame.assign("power_iter", frame.temporary(side * side * s, "power_iter"))
            self._record_qr(frame, parameter, index, side)
        for name in ("matrix_product", "est_eig", "sort_idx", "power_iter", "r"):
            frame.clear(name)
        for index, side in reversed(sides):
            frame.drop_state(parameter.name, f"Q{index}", side * side * s)

    def _record_order(self, frame: Frame, side: int) -> None:
        """``torch.argsort((o * matrix_product).sum(dim=0), descending=True)``."""
        s = self.param_dtype_bytes
        weighted = frame.temporary(side * side * s, "o * matrix_product")
        estimate = frame.temporary(side * s, "est_eig")
        record_column_reduction(frame, (side, side))
        frame.free(weighted)
        frame.assign("est_eig", estimate)
        values = frame.temporary(side * s, "sorted")
        indices = frame.temporary(side * INDEX_BYTES, "sort_idx")
        frame.free(frame.temporary(side * INDEX_BYTES, DEVICE_SCRATCH), values)
        frame.assign("sort_idx", indices)

    def _record_reordered(self, frame: Frame, parameter: ParameterTensor, *, is_last: bool) -> None:
        """``exp_avg_sq.index_select(...)``: the last one is the new second moment.

        ``step()`` holds the old one by a name of its own until the next parameter.
        """
        nbytes = parameter.numel * self.param_dtype_bytes
        if is_last:
            frame.state(parameter.name, "exp_avg_sq", nbytes)
            frame.clear("reordered")
            frame.assign("exp_avg_sq", Block((parameter.name, "exp_avg_sq"), nbytes, "exp_avg_sq"))
        else:
            frame.assign("reordered", frame.temporary(nbytes, "exp_avg_sq reordered"))

    def _record_qr(self, frame: Frame, parameter: ParameterTensor, index: int, side: int) -> None:
        """``q, _ = torch.linalg.qr(power_iter.to(torch.float32))``; q in the parameter's dtype is the new basis."""
        s, squared = self.param_dtype_bytes, side * side
        is_fp32 = s == FP32_BYTES
        copies = [] if is_fp32 else [frame.temporary(squared * FP32_BYTES, "fp32 power_iter")]
        basis: list[Block] = []
        if is_fp32:
            frame.state(parameter.name, f"Q{index}", squared * s)
        else:
            basis = [frame.temporary(squared * FP32_BYTES, "q")]
        triangle = frame.temporary(squared * FP32_BYTES, "r")
        record_qr(frame, side, side)
        frame.free(*copies)
        frame.assign("r", triangle)
        if not is_fp32:
            frame.state(parameter.name, f"Q{index}", squared * s)
            frame.free(*basis)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 8 m n d and bytes = s (7 e + 7 d^2) for each side d with a preconditioner, and 20 e s.

        Three products of e elements with a basis (6 m n d FLOPs, reading and writing e and reading d^2 each), and the
        outer product (2 m n d; e read, d^2 written), averaged in (3 d^2).

        Source: arXiv:2409.11321 Algorithm 3; pytorch_optimizer/optimizer/soap.py.
        Assumes: weight decay not 0 (0.01 by default); one kernel per operator, no reuse in cache; the QR of a refresh
            is not counted.
        """
        numel = parameter.numel
        sides = [side for side in self.sides(parameter) if side is not None]
        flops = sum(8 * numel * side for side in sides)
        elements = ELEMENTWISE_ACCESSES * numel + sum(7 * numel + 7 * side * side for side in sides)
        return StepWork(flops, elements * self.param_dtype_bytes, 0, PRECONDITION_FREQUENCY)
