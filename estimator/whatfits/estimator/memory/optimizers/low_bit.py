"""AdamW with 4-bit and with fp8 states, as torchao keeps them.

Bingrui Li, Jianfei Chen, Jun Zhu: Memory Efficient Optimizers with 4-bit States, arXiv:2309.01507 (4-bit, without its
rank-1 normalisation of the second moment); fp8: torchao's own. Rules read in torchao 0.18.0, torchao/optim/adam.py,
subclass_4bit.py, subclass_fp8.py. The update is compiled; its temporaries are those Inductor made on an H100 (torch
2.11, benchmarks/gpu_recordings).
"""

from dataclasses import dataclass
from typing import ClassVar

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.per_parameter import PerParameterProgram
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StateTensor, StepPhase, StepWork
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["AdamW4bit", "AdamWFp8"]

LEAST_QUANTISED = 4096
"""Tensors with fewer elements, or not of whole blocks, keep states in the parameter's dtype."""

STEP_BYTES = 4
FP32_BYTES = 4
INT64_BYTES = 8
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowBitAdamW(PerParameterProgram):
    """Base of the two: codes and one fp32 scale per block for each moment, in one compiled kernel or a few."""

    block_size: ClassVar[int]
    bits: ClassVar[int]
    map_bytes: ClassVar[int]
    """The quantisation map each state tensor has for itself."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """None: the compiled function frees what it makes."""
        return ()

    def is_quantised(self, parameter: ParameterTensor) -> bool:
        """Whether torchao quantises the tensor's states; under FSDP its local shard decides."""
        return parameter.numel >= LEAST_QUANTISED and parameter.numel % self.block_size == 0

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """Codes, scales and map of two moments, and ``step`` on the CPU.

        bytes = 2 (e bits / 8 + 4 e / block + map) where e >= 4096 and e is of whole blocks, else 2 e s; 4 bits: blocks
        of 128, a map of 64 bytes; fp8: blocks of 256, no map.

        Source: torchao/optim/adam.py, `_new_buffer`.
        Assumes: no amsgrad; the libraries' default blocks.
        """
        step = StateTensor(name="step", nbytes=STEP_BYTES, on_device=False)
        if not self.is_quantised(parameter):
            return (step, *adamw_states(parameter, self.param_dtype_bytes))
        sizes = {
            "codes": parameter.numel * self.bits // 8,
            "scale": self.scale_bytes(parameter),
            "qmap": self.map_bytes,
        }
        return (
            step,
            *(
                StateTensor(name=f"{moment}.{part}", nbytes=nbytes)
                for moment in MOMENTS
                for part, nbytes in sizes.items()
                if nbytes
            ),
        )

    def scale_bytes(self, parameter: ParameterTensor) -> int:
        """One fp32 number per block."""
        return FP32_BYTES * parameter.numel // self.block_size

    def temporary_bytes(self, parameter: ParameterTensor) -> tuple[int, ...]:
        """What the compiled update makes for each moment besides its new scales."""
        raise NotImplementedError

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Both moments' temporaries are alive together; tensors that are not quantised need none."""
        if phase is StepPhase.first:
            for state in self.states(parameter):
                if state.on_device:
                    frame.state(parameter.name, state.name, state.nbytes)
        if not self.is_quantised(parameter):
            return
        sizes = (self.scale_bytes(parameter), *self.temporary_bytes(parameter))
        pairs = [
            tuple(frame.temporary(nbytes, f"{moment} temporary") for moment in MOMENTS) for nbytes in sizes
        ]
        for moment in range(len(MOMENTS)):
            frame.free(*(pair[moment] for pair in (*pairs[1:], pairs[0])))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """Traffic of the compiled update.

        bytes = 3 e s + 2 x state bytes + 2 x temporaries: read parameter and gradient, write the parameter, read and
        write the states, write and read the temporaries once each.

        Source: torchao/optim/adam.py, `single_param_adam`.
        Assumes: one pass per tensor.
        """
        state = sum(s.nbytes for s in self.states(parameter) if s.on_device)
        moved = 3 * parameter.numel * self.param_dtype_bytes + 2 * state
        if self.is_quantised(parameter):
            moved += 2 * len(MOMENTS) * sum(self.temporary_bytes(parameter))
        return StepWork(0, moved, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW4bit(LowBitAdamW):
    """`torchao.optim.AdamW4bit`: two codes a byte, looked up in a map of 16 values."""

    block_size: ClassVar[int] = 128
    bits: ClassVar[int] = 4
    map_bytes: ClassVar[int] = 16 * FP32_BYTES

    def temporary_bytes(self, parameter: ParameterTensor) -> tuple[int, ...]:
        """The new moment in fp32 and its codes as int64, 12 e bytes a moment: packing comes last.

        Source: recorded on an H100, benchmarks/gpu_recordings, case ao:AdamW4bit.
        Assumes: Inductor of torch 2.11 and its choice of kernels.
        """
        return (parameter.numel * FP32_BYTES, parameter.numel * INT64_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWFp8(LowBitAdamW):
    """`torchao.optim.AdamWFp8`: float8_e4m3fn codes."""

    block_size: ClassVar[int] = 256
    bits: ClassVar[int] = 8
    map_bytes: ClassVar[int] = 0

    def temporary_bytes(self, parameter: ParameterTensor) -> tuple[int, ...]:
        """The new codes, e bytes a moment.

        Source: recorded on an H100, benchmarks/gpu_recordings, case ao:AdamWFp8.
        Assumes: Inductor of torch 2.11, which left them out for one shape of three (512 x 1376).
        """
        return (parameter.numel,)
