"""The block-wise 8-bit family as `whatfits.optim_impls` steps it: states of bitsandbytes' size, a workspace of one chunk.

Tim Dettmers, Mike Lewis, Sam Shleifer, Luke Zettlemoyer: 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861. Rules of optim_impls/whatfits/optim_impls/blockwise.py and blockwise_8bit.py; the contract test holds
both to the bytes of real steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from whatfits.estimator.memory.optimizers.blockwise_8bit import is_quantised
from whatfits.estimator.memory.optimizers.frame import Block, Frame
from whatfits.estimator.memory.optimizers.linalg_scratch import record_svd
from whatfits.estimator.memory.optimizers.low_rank import LowRankProgram, Projection
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    ParameterRole,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)

__all__ = [
    "ADAM",
    "LION",
    "SGDM",
    "Blockwise8bitMethod",
    "OwnBlockwise8bit",
    "OwnGaLore8bit",
    "codebook_states",
    "own_blockwise_states",
    "record_chunk_workspace",
]

FP32_BYTES = 4
BLOCK_SIZE = 256
CHUNK_SIZE = 1 << 18
"""Elements updated at a time (`blockwise.CHUNK_SIZE`)."""
STEP_COUNT_BYTES = 4
CODEBOOK_BYTES = {"values": 1024, "boundaries": 1024, "lower_codes": 3201}


class Blockwise8bitMethod(NamedTuple):
    """States of a method, with whether they have a sign, and its temporaries beside the workspace."""

    moments: tuple[tuple[str, bool], ...]
    counts_on_device: bool
    makes_direction: bool


ADAM: Final = Blockwise8bitMethod(
    (("exp_avg", True), ("exp_avg_sq", False)), counts_on_device=True, makes_direction=False
)
SGDM: Final = Blockwise8bitMethod((("momentum_buffer", True),), counts_on_device=False, makes_direction=False)
LION: Final = Blockwise8bitMethod((("exp_avg", True),), counts_on_device=False, makes_direction=True)


def own_blockwise_states(
    numel: int, method: Blockwise8bitMethod, *, quantised: bool
) -> tuple[StateTensor, ...]:
    """Per state e + 4 ceil(e / 256) bytes, or 4 e in fp32.

    Source: arXiv:2110.02861 section 2; blockwise.py, `moment_states`.
    Assumes: blocks of 256 elements.
    """
    if not quantised:
        return tuple(StateTensor(name=name, nbytes=numel * FP32_BYTES) for name, _ in method.moments)
    maxima = FP32_BYTES * -(-numel // BLOCK_SIZE)
    return tuple(
        state
        for name, _ in method.moments
        for state in (
            StateTensor(name=name, nbytes=numel),
            StateTensor(name=f"{name}_absmax", nbytes=maxima),
        )
    )


def codebook_states(method: Blockwise8bitMethod) -> tuple[StateTensor, ...]:
    """The maps and the tables that find codes, held once."""
    signs = sorted({is_signed for _, is_signed in method.moments}, reverse=True)
    return tuple(
        StateTensor(name=f"{'signed' if is_signed else 'unsigned'}_{name}", nbytes=nbytes)
        for is_signed in signs
        for name, nbytes in CODEBOOK_BYTES.items()
    )


def record_chunk_workspace(
    frame: Frame, numel: int, param_dtype_bytes: int, num_moments: int, *, quantised: bool
) -> list[Block]:
    """What one update works in, for n elements of a chunk (whole blocks).

    bytes = 4 n (states + 2) + 2 n + 4 n / 256 + 256: fp32 moments, gradient and parameter, two flags an element, one
    factor a block, the last block's codes. Where states are fp32: 8 n in lower precisions, else nothing.

    Source: blockwise.py, `workspace_bytes`.
    Assumes: the default chunk.
    """
    if quantised:
        n = min(CHUNK_SIZE, -(-numel // BLOCK_SIZE) * BLOCK_SIZE)
        sizes = [*[FP32_BYTES * n] * (num_moments + 2), 2 * n, FP32_BYTES * n // BLOCK_SIZE, BLOCK_SIZE]
    else:
        n = min(CHUNK_SIZE, numel)
        sizes = [] if param_dtype_bytes == FP32_BYTES else [2 * FP32_BYTES * n]
    return [frame.temporary(nbytes, "chunk workspace") for nbytes in sizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBlockwise8bit(PerParameterProgram):
    """`whatfits.optim_impls.blockwise_8bit`: one parameter after the other, chunk by chunk."""

    method: Blockwise8bitMethod
    fp32_embeddings: bool = False

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update frees what it makes."""
        return ()

    def quantises(self, parameter: ParameterTensor) -> bool:
        """Whether a parameter's states are 8-bit."""
        kept = self.fp32_embeddings and parameter.role is ParameterRole.embedding
        return is_quantised(parameter.numel) and not kept

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The moments; the step counter is a number."""
        return own_blockwise_states(parameter.numel, self.method, quantised=self.quantises(parameter))

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The codebooks, once some parameter is quantised."""
        quantised = any(self.quantises(kind.example) for kind in Parameters.of(parameters).kinds)
        return codebook_states(self.method) if quantised else ()

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Make the state in the first step; then the workspace of one chunk."""
        quantised = self.quantises(parameter)
        if phase is StepPhase.first:
            if quantised:
                for shared in codebook_states(self.method):
                    frame.shared_state(shared.name, shared.nbytes)
            for state in self.states(parameter):
                frame.state(parameter.name, state.name, state.nbytes)
        held = [frame.temporary(STEP_COUNT_BYTES, "step count")] if self.method.counts_on_device else []
        held += record_chunk_workspace(
            frame, parameter.numel, self.param_dtype_bytes, len(self.method.moments), quantised=quantised
        )
        if self.method.makes_direction:
            whole = parameter.numel // BLOCK_SIZE * BLOCK_SIZE
            largest = min(CHUNK_SIZE, whole if quantised else parameter.numel)
            held.append(frame.temporary(largest * FP32_BYTES, "direction"))
        frame.free(*held)

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic beyond the cache.

        bytes = 3 e s + 2 x state bytes: read parameter and gradient, write the parameter, read and write the states.

        Source: blockwise.py, `update_in_chunks`.
        Assumes: a chunk's copies stay in cache.
        """
        state = sum(state.nbytes for state in self.states(parameter))
        return StepWork(0, 3 * parameter.numel * self.param_dtype_bytes + 2 * state, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGaLore8bit(LowRankProgram):
    """`whatfits.optim_impls.galore_8bit`: P is a copy, and nothing as large as the weights is made outside the SVD."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: each update frees what it makes."""
        return ()

    def moment_numel(self, parameter: ParameterTensor) -> int:
        """Elements of each moment."""
        projection = self.projection(parameter)
        return parameter.numel if projection is None else projection.low_rank

    def projection_states(self, projection: Projection) -> tuple[StateTensor, ...]:
        """P in the parameters' dtype."""
        return (StateTensor(name="projection", nbytes=projection.matrix * self.param_dtype_bytes),)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """P of r M s bytes and two moments of r N elements, 8-bit from 4096 elements on; elsewhere moments of e.

        Source: arXiv:2403.03507 section 4.2; galore_8bit.py.
        Assumes: the step counter is a number.
        """
        projection = self.projection(parameter)
        numel = self.moment_numel(parameter)
        moments = own_blockwise_states(numel, ADAM, quantised=is_quantised(numel))
        return moments if projection is None else (*self.projection_states(projection), *moments)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The codebooks, once some moment is quantised."""
        kinds = Parameters.of(parameters).kinds
        quantised = any(is_quantised(self.moment_numel(kind.example)) for kind in kinds)
        return codebook_states(ADAM) if quantised else ()

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Make the state in the first step; refresh P where due; project, step the moments, add one product."""
        projection = self.projection(parameter)
        numel = self.moment_numel(parameter)
        if phase is StepPhase.first:
            self.record_states(frame, parameter)
        if projection is None:
            held = [frame.temporary(STEP_COUNT_BYTES, "step count")]
        else:
            if phase is not StepPhase.steady:
                self.record_refresh(frame, parameter, projection, phase)
            held = self.record_project(frame, projection)
        workspace = record_chunk_workspace(
            frame, numel, self.param_dtype_bytes, len(ADAM.moments), quantised=is_quantised(numel)
        )
        frame.free(*workspace, *held)

    def record_states(self, frame: Frame, parameter: ParameterTensor) -> None:
        """Make a parameter's state; the first quantised moments come with the codebooks."""
        if is_quantised(self.moment_numel(parameter)):
            for shared in codebook_states(ADAM):
                frame.shared_state(shared.name, shared.nbytes)
        for state in self.states(parameter):
            frame.state(parameter.name, state.name, state.nbytes)

    def record_refresh(
        self, frame: Frame, parameter: ParameterTensor, projection: Projection, phase: StepPhase
    ) -> None:
        """A thin SVD in fp32, whose leading vectors are copied into P; first and later ones alike."""
        del phase
        copies = (
            []
            if self.param_dtype_bytes == FP32_BYTES
            else [frame.temporary(FP32_BYTES * projection.full, "fp32 gradient")]
        )
        square, full = FP32_BYTES * projection.short_side**2, FP32_BYTES * projection.full
        sizes = (
            {"svd.U": full, "svd.Vh": square} if projection.is_right else {"svd.U": square, "svd.Vh": full}
        )
        factors = [frame.temporary(nbytes, label) for label, nbytes in sizes.items()]
        factors.append(frame.temporary(FP32_BYTES * projection.short_side, "svd.S"))
        record_svd(frame, *parameter.shape)
        frame.free(*copies, *factors)

    def record_project(self, frame: Frame, projection: Projection) -> list[Block]:
        """The projected gradient, in whose place the direction is written."""
        return [frame.temporary(projection.low_rank * self.param_dtype_bytes, "projected gradient")]

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (3 m n + 4 r N + 2 r M) + 2 x moments' bytes for a projected matrix.

        Read the gradient, read and write the weights; the projected gradient is written, read, overwritten and read.

        Source: galore_8bit.py.
        Assumes: a chunk's copies stay in cache.
        """
        projection = self.projection(parameter)
        numel = self.moment_numel(parameter)
        moments = own_blockwise_states(numel, ADAM, quantised=is_quantised(numel))
        moved = 2 * sum(state.nbytes for state in moments)
        if projection is None:
            return StepWork(0, 3 * parameter.numel * self.param_dtype_bytes + moved, 0, None)
        elements = 3 * projection.full + 4 * projection.low_rank + 2 * projection.matrix
        moved += elements * self.param_dtype_bytes
        svd_work = projection.full * projection.short_side
        return StepWork(2 * projection.product_flops, moved, svd_work, self.update_interval)
