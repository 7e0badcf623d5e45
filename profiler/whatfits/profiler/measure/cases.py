"""The training runs that are held against the model of memory: one optimizer and one shape of step each."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from whatfits.estimator.specs import ActivationCheckpointing, OptimizerSpec, TrainingSpec

__all__ = ["CPU_CASES", "CUDA_CASES", "NUM_STEPS", "Case"]

NUM_STEPS = 3
"""The first step creates the optimizer's state, the second is ordinary, the third shows that nothing grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of `NUM_STEPS` steps in pure bf16."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    implementation: Literal["for_loop", "foreach", "fused"] = "foreach"
    layerwise: bool = False
    grad_accum_steps: int = 1
    checkpointing: bool = False
    micro_batch_size: int = 1
    seq_len: int = 256

    @property
    def name(self) -> str:
        """Readable and usable as a file name."""
        parts = [
            self.optimizer,
            self.implementation,
            *(["layerwise"] if self.layerwise else []),
            f"mb{self.micro_batch_size}",
            f"seq{self.seq_len}",
            *([f"accum{self.grad_accum_steps}"] if self.grad_accum_steps > 1 else []),
            *(["ckpt"] if self.checkpointing else []),
        ]
        return "-".join(parts)

    @property
    def training(self) -> TrainingSpec:
        """The case as a question would put it."""
        return TrainingSpec(
            micro_batch_size=self.micro_batch_size,
            seq_len=self.seq_len,
            grad_accum_steps=self.grad_accum_steps,
            optimizer=OptimizerSpec.model_validate(
                {"name": self.optimizer, "implementation": self.implementation}
            ),
            layerwise_update=self.layerwise,
            activation_checkpointing=ActivationCheckpointing.FULL
            if self.checkpointing
            else ActivationCheckpointing.NONE,
        )

    def to_json(self) -> dict[str, Any]:
        """Fields as plain data."""
        return asdict(self)


CUDA_CASES: tuple[Case, ...] = (
    Case(optimizer="sgd"),
    Case(implementation="for_loop"),
    Case(implementation="foreach"),
    Case(implementation="fused"),
    Case(layerwise=True),
    Case(grad_accum_steps=2),
    Case(checkpointing=True),
    Case(micro_batch_size=4),
    Case(seq_len=500),
    Case(micro_batch_size=4, seq_len=500),
    Case(optimizer="sgd", micro_batch_size=4, seq_len=500, checkpointing=True),
    Case(micro_batch_size=4, checkpointing=True, grad_accum_steps=2),
    Case(implementation="fused", layerwise=True, micro_batch_size=4),
    Case(implementation="for_loop", micro_batch_size=4, grad_accum_steps=2),
)
"""All optimizers at one shape, then each other shape with one of them and a few combinations."""

CPU_CASES: tuple[Case, ...] = (
    Case(optimizer="sgd", seq_len=24),
    Case(implementation="for_loop", seq_len=24),
    Case(implementation="foreach", micro_batch_size=2, seq_len=33, grad_accum_steps=2),
    Case(implementation="fused", seq_len=24, checkpointing=True),
    Case(layerwise=True, micro_batch_size=2, seq_len=24),
)
"""The same kinds of step, small enough for a CPU."""
