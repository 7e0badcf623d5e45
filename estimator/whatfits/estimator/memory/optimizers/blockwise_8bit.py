"""AdamW with block-wise 8-bit states, as bitsandbytes keeps them.

Tim Dettmers, Mike Lewis, Sam Shleifer, Luke Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022,
arXiv:2110.02861. Rules read in bitsandbytes 0.50.2, bitsandbytes/optim/optimizer.py, `Optimizer2State.init_state`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import (
    ParameterRole,
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)

__all__ = ["DEFAULT_BLOCK_SIZE", "AdamW8bit", "blockwise_states", "is_quantised", "record_blockwise_states"]

DEFAULT_BLOCK_SIZE = 256
"""Elements per quantisation block in bitsandbytes 0.50.2; the paper and older releases used 2048."""

MIN_8BIT_SIZE = 4096
"""Tensors with fewer elements keep fp32 states (`min_8bit_size`)."""

FP32_BYTES = 4
QUANTISATION_MAP_BYTES = 256 * FP32_BYTES


def is_quantised(numel: int) -> bool:
    """Whether a tensor of this many elements gets 8-bit states."""
    return numel >= MIN_8BIT_SIZE


def blockwise_states(numel: int, block_size: int, *, quantise: bool = True) -> tuple[StateTensor, ...]:
    """Adam's two moments for e elements, 8-bit with one fp32 maximum per block.

    bytes = 2 e + 2 x 4 ceil(e / block_size) for e >= 4096, else 2 x 4 e; independent of the parameter's dtype.

    Source: bitsandbytes 0.50.2, `Optimizer2State.init_state`; arXiv:2110.02861 section 2.
    Assumes: not paged, no `max_unorm`.
    """
    if not quantise or not is_quantised(numel):
        names = ("state1", "state2")
        return tuple(StateTensor(name=name, nbytes=numel * FP32_BYTES) for name in names)
    maxima = FP32_BYTES * (-(-numel // block_size))
    return (
        StateTensor(name="state1", nbytes=numel),
        StateTensor(name="state2", nbytes=numel),
        StateTensor(name="absmax1", nbytes=maxima),
        StateTensor(name="absmax2", nbytes=maxima),
    )


def quantisation_maps() -> tuple[StateTensor, ...]:
    """The signed and the unsigned dynamic map, 256 fp32 values each, shared by all parameters."""
    return (
        StateTensor(name="qmap1", nbytes=QUANTISATION_MAP_BYTES),
        StateTensor(name="qmap2", nbytes=QUANTISATION_MAP_BYTES),
    )


def record_blockwise_states(frame: Frame, owner: str, states: Sequence[StateTensor]) -> None:
    """Allocate one parameter's state; the first quantised one brings the maps to the device."""
    if len(states) > 2:
        for shared in quantisation_maps():
            frame.shared_state(shared.name, shared.nbytes)
    for state in states:
        if state.on_device:
            frame.state(owner, state.name, state.nbytes)


def update_traffic(numel: int, param_dtype_bytes: int, states: Sequence[StateTensor]) -> int:
    """Device-memory bytes one bitsandbytes update moves.

    bytes = 3 e s + 2 x state bytes: read parameter and gradient, write parameter, read and write the states.

    Source: csrc/kernels.cu, `kOptimizerStatic8bit2StateBlockwise` and `kOptimizer32bit2State`.
    Assumes: one pass.
    """
    return 3 * numel * param_dtype_bytes + 2 * sum(state.nbytes for state in states)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW8bit(PerParameterProgram):
    """`bitsandbytes.optim.AdamW8bit`: one in-place kernel per parameter, no temporaries.

    `fp32_embeddings` is the override Hugging Face's Trainer registers for every `nn.Embedding` (and
    `bitsandbytes.nn.StableEmbedding` for itself): 32-bit states.
    """

    block_size: int = DEFAULT_BLOCK_SIZE
    fp32_embeddings: bool = False

    @property
    def local_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """The two moments; the step counter is a Python number."""
        quantise = not (self.fp32_embeddings and parameter.role is ParameterRole.embedding)
        return blockwise_states(parameter.numel, self.block_size, quantise=quantise)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The two maps, once some parameter is quantised."""
        return (
            quantisation_maps()
            if any(len(self.states(kind.example)) > 2 for kind in Parameters.of(parameters).kinds)
            else ()
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """In place; the first step makes the state."""
        if phase is StepPhase.first:
            record_blockwise_states(frame, parameter.name, self.states(parameter))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of one bitsandbytes kernel, as `update_traffic`."""
        moved = update_traffic(parameter.numel, self.param_dtype_bytes, self.states(parameter))
        return StepWork(0, moved, 0, None)
