"""Adam-mini: Adam with one second moment per block of a matrix instead of one per element.

Yushun Zhang, Congliang Chen, Ziniu Li, Tian Ding, Chenwei Wu, Diederik P. Kingma, Yinyu Ye, Zhi-Quan Luo, Ruoyu Sun:
Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793, Algorithms 1 to 3. Allocations are those of
pytorch-optimizer 4.1.0 (pytorch_optimizer/optimizer/adam_mini.py) on CUDA, equal to steps recorded on an H100
(benchmarks/gpu_recordings, `steps`).

Differs from the paper: that library keeps a second moment per element for embeddings and head, one per matrix for
values, attention outputs and feed-forward layers, and all of it in fp32 whatever the parameters' dtype. The authors'
package (adam-mini 1.1.1) keeps a momentum in the parameter's dtype and one second moment per output row (per head for
queries and keys): e s + rows s bytes, embeddings and head included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.device_scratch import record_full_reduction
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters, is_query_or_key
from whatfits.estimator.memory.optimizers.program import (
    ParameterRole,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.whole_step import WholeStepProgram

__all__ = ["AdamMini"]

FP32_BYTES = 4
EMBEDDING_ACCESSES = 14
"""In fp32: lerp_ 3, mul_ 2, addcmul_ 3, sqrt 2, div_ 2, add_ 2; the addition of the update in both dtypes comes on top."""
BLOCK_ACCESSES = 8
"""In fp32: square 2, its mean 1, lerp_ 3, scaled momentum 2; the addition of the update comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamMini(WholeStepProgram):
    """`pytorch_optimizer.AdamMini`: m <- lerp(m, g), v_b <- lerp(v_b, mean of g^2 in block b), p <- p - lr m / sqrt(v_b).

    Queries and keys have a block per head, embeddings and head one per element, all others are one block. The number
    of heads sizes a vector of at most 512 bytes, which the allocator rounds up, up to 128 heads.
    """

    num_heads: int = 32

    def is_per_element(self, parameter: ParameterTensor) -> bool:
        """Whether a parameter keeps all of Adam's second moment."""
        return parameter.role in (ParameterRole.embedding, ParameterRole.head)

    def heads_bytes(self, parameter: ParameterTensor) -> int:
        """fp32 bytes of one number per head of a query or key weight: its rows over the head dimension."""
        rows, columns = parameter.shape
        return FP32_BYTES * max(1, rows * self.num_heads // columns)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """fp32 momentum 4 e, and 4 e (embeddings, head), 4 per head (queries, keys) or 4 + 4 bytes (all others).

        Source: pytorch_optimizer/optimizer/adam_mini.py, `step_embed`, `step_attn_proj`, `init_lefts`.
        Assumes: no model sharding.
        """
        momentum = StateTensor(name="m", nbytes=parameter.numel * FP32_BYTES)
        if self.is_per_element(parameter):
            return (momentum, StateTensor(name="v", nbytes=parameter.numel * FP32_BYTES))
        if is_query_or_key(parameter):
            return (momentum, StateTensor(name="v_mean", nbytes=self.heads_bytes(parameter)))
        size = StateTensor(name="dimension", nbytes=FP32_BYTES)
        return (size, momentum, StateTensor(name="v_mean", nbytes=FP32_BYTES))

    def record_step(self, frame: Frame, parameters: Parameters, phase: StepPhase) -> None:
        """A loop that updates embeddings, head, queries and keys, then lists of all others.

        In lower precision the fp32 gradients of those others live until the step ends.
        """
        gradients: list[Block] = []
        rest: list[ParameterTensor] = []
        for parameter in parameters:
            frame.clear("grad")
            cast = self._cast(frame, parameter)
            if phase is StepPhase.first:
                for state in self.states(parameter):
                    frame.state(parameter.name, state.name, state.nbytes)
            if self.is_per_element(parameter):
                frame.free(frame.temporary(parameter.numel * FP32_BYTES, "v.sqrt"))
            elif is_query_or_key(parameter):
                self._record_heads(frame, parameter)
            else:
                rest.append(parameter)
                gradients += cast
                continue
            for block in cast:
                frame.assign("grad", block)
        self._record_rest(frame, rest)
        frame.clear("grad")
        frame.free(*reversed(gradients))

    def _cast(self, frame: Frame, parameter: ParameterTensor) -> list[Block]:
        """``grad.to(torch.float32)``."""
        if self.param_dtype_bytes == FP32_BYTES:
            return []
        return [frame.temporary(parameter.numel * FP32_BYTES, "fp32 gradient")]

    def _record_heads(self, frame: Frame, parameter: ParameterTensor) -> None:
        """`step_attn_proj`: ``(1 / (h * bias_correction1)).view(head, 1).mul(m)``; means are split only if long."""
        nbytes, heads = parameter.numel * FP32_BYTES, self.heads_bytes(parameter)
        square = frame.temporary(nbytes, "grad * grad")
        means = frame.temporary(heads, "means")
        frame.free(square)
        root = frame.temporary(heads, "h")
        corrected = frame.temporary(heads, "h * bias_correction1")
        reciprocal = frame.temporary(heads, "reciprocal")
        scale = frame.temporary(heads, "1 / h")
        frame.free(reciprocal, corrected)
        update = frame.temporary(nbytes, "update")
        frame.free(scale, means, root, update)

    def _record_rest(self, frame: Frame, parameters: Sequence[ParameterTensor]) -> None:
        """`step_lefts_foreach`: a list of sums of squares, then a list of updates."""
        if not parameters:
            return
        count = len(parameters) * FP32_BYTES
        sums = []
        for parameter in parameters:
            square = frame.temporary(parameter.numel * FP32_BYTES, "grad.square")
            sums.append(frame.temporary(FP32_BYTES, "sum"))
            record_full_reduction(frame, parameter.shape)
            frame.free(square)
        stacked = frame.temporary(count, "sums")
        frame.free(*reversed(sums))
        sizes = frame.temporary(count, "dimensions")
        means = frame.temporary(count, "means")
        frame.free(stacked, sizes)
        variances = frame.temporary(count, "variances")
        updates = [frame.temporary(p.numel * FP32_BYTES, "updates") for p in parameters]
        frame.free(means, variances, *reversed(updates))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one kernel per operator: bytes = 4 a e + (2 s + 4) e + 2 s e (weight decay) + casts.

        a = 14 and an update of m / h in one kernel (4 + 4 more) for embeddings and head, else 8. The update is read
        once in fp32, the parameter read and written. Lower precision reads the gradient and writes an fp32 copy.

        Source: pytorch_optimizer/optimizer/adam_mini.py.
        Assumes: weight decay not 0 (0.1 by default, none for norms); no reuse in cache.
        """
        s = self.param_dtype_bytes
        decay = 0 if parameter.role is ParameterRole.vector else 2 * s
        casts = 0 if s == FP32_BYTES else s + FP32_BYTES
        if self.is_per_element(parameter):
            per_element = FP32_BYTES * (EMBEDDING_ACCESSES + 2) + 2 * s
        else:
            per_element = FP32_BYTES * (BLOCK_ACCESSES + 1) + 2 * s
        return StepWork(0, parameter.numel * (per_element + decay + casts), 0, None)
