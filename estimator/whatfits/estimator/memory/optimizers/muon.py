"""Muon: momentum of each matrix, made orthogonal by Newton-Schulz iterations in bf16; AdamW for all other parameters.

Keller Jordan, Yuchen Jin, Vlado Boza, Jiacheng You, Franz Cesista, Laker Newhouse, Jeremy Bernstein: Muon: An optimizer
for hidden layers in neural networks, 2024, https://kellerjordan.github.io/posts/muon/. Allocations are those of
torch/optim/_muon.py (`_single_tensor_muon`, `_zeropower_via_newtonschulz`) and torch/optim/adam.py, PyTorch 2.13.

`torch.optim.Muon` takes matrices of hidden layers only, so that a run has two optimizers, stepped one after the other:
Muon for linear layers, then AdamW (multi-tensor, the default on CUDA) for embeddings, head and vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters, is_linear_matrix
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.torch_optim import AdamWForeach
from whatfits.estimator.memory.optimizers.whole_step import WholeStepProgram

__all__ = ["NEWTON_SCHULZ_STEPS", "Muon"]

NEWTON_SCHULZ_STEPS = 5
"""Iterations (`ns_steps`)."""

BF16_BYTES = 2
MATRIX_ACCESSES = 10
"""Full-size reads and writes in the parameter's dtype: lerp_ 3, lerp 3, mul_ 2, add_ 2."""

LOCAL_NAMES = ("update",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon(WholeStepProgram):
    """`torch.optim.Muon` for matrices, then `torch.optim.AdamW(foreach=True)` for the rest.

    B <- lerp(B, g, 1 - mu), U = lerp(g, B, mu), X = U / norm(U) in bf16, five times
    X <- a X + (b A + c A A) X with A = X X^T, p <- p - lr X.
    """

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """A matrix's momentum in the parameter's dtype, e s bytes; elsewhere AdamW's two moments.

        Source: torch/optim/_muon.py, `Muon._init_group`; torch/optim/adam.py.
        Assumes: no amsgrad.
        """
        if is_linear_matrix(parameter):
            return (StateTensor(name="momentum_buffer", nbytes=parameter.numel * self.param_dtype_bytes),)
        return self._adamw.states(parameter)

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """Muon's loop over the matrices, then AdamW's lists of the rest."""
        matrices = [parameter for parameter in parameters if is_linear_matrix(parameter)]
        others = [parameter for parameter in parameters if not is_linear_matrix(parameter)]
        if phase is StepPhase.first:
            for parameter in matrices:
                for state in self.states(parameter):
                    frame.state(parameter.name, state.name, state.nbytes)
        for parameter in matrices:
            self._record_matrix(frame, parameter)
        frame.leave(LOCAL_NAMES)
        self._record_adamw(frame, others, phase)

    @property
    def _adamw(self) -> AdamWForeach:
        return AdamWForeach(param_dtype_bytes=self.param_dtype_bytes)

    def _record_adamw(self, frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase) -> None:
        self._adamw.begin(frame, parameters, phase)
        if parameters:
            self._adamw.record_lists(frame, parameters, phase)

    def _record_matrix(self, frame: Frame, parameter: ParameterTensor) -> None:
        """``update = grad.lerp(buf, momentum)``, then its orthogonal factor takes its name."""
        update = frame.temporary(parameter.numel * self.param_dtype_bytes, "update")
        frame.assign("update", update)
        orthogonal = self._record_newton_schulz(frame, parameter, update)
        frame.assign("update", orthogonal)
        frame.clear("orthogonal")

    def _record_newton_schulz(self, frame: Frame, parameter: ParameterTensor, update: Block) -> Block:
        """Five times a Gram matrix and its square's update, each M x M, and a product of the matrix's size."""
        nbytes = parameter.numel * BF16_BYTES
        gram_bytes = min(parameter.shape) ** 2 * BF16_BYTES
        # A bf16 update is not copied: its orthogonal factor starts as the update itself.
        is_copied = self.param_dtype_bytes != BF16_BYTES
        orthogonal = frame.temporary(nbytes, "bf16 update") if is_copied else update
        frame.assign("orthogonal", orthogonal)
        norm = frame.temporary(BF16_BYTES, "norm")
        record_full_reduction(frame, parameter.shape)
        clamped = frame.temporary(BF16_BYTES, "clamped norm")
        frame.free(norm, clamped)
        for _ in range(NEWTON_SCHULZ_STEPS):
            frame.assign("gram_matrix", frame.temporary(gram_bytes, "gram matrix"))
            frame.assign("gram_update", frame.temporary(gram_bytes, "gram update"))
            orthogonal = frame.temporary(nbytes, "orthogonal update")
            frame.assign("orthogonal", orthogonal)
        frame.clear("gram_matrix")
        frame.clear("gram_update")
        return orthogonal

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 5 (4 M^2 N + 2 M^3) for M = min(m, n), N = max(m, n); bytes = 10 e s + 2 (19 e + 20 M^2).

        In bf16 (2 bytes): norm 1, division 2, the update's reading 1, and per iteration products that read the matrix
        twice and write it once, and read or write an M x M matrix four times; fp32 parameters add 6 e for the copy.

        Source: torch/optim/_muon.py.
        Assumes: one kernel per operator, weight decay not 0 (torch's default is 0.1), no reuse in cache.
        """
        if not is_linear_matrix(parameter):
            return self._adamw.update_work(parameter)
        short, long = sorted(parameter.shape)
        numel = short * long
        flops = NEWTON_SCHULZ_STEPS * (4 * short * short * long + 2 * short**3)
        elements = (1 + 2 + 1 + 3 * NEWTON_SCHULZ_STEPS) * numel + 4 * NEWTON_SCHULZ_STEPS * short * short
        moved = MATRIX_ACCESSES * numel * self.param_dtype_bytes + BF16_BYTES * elements
        if self.param_dtype_bytes != BF16_BYTES:
            moved += (self.param_dtype_bytes + BF16_BYTES) * numel
        return StepWork(flops, moved, 0, None)
