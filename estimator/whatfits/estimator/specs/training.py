"""How the model is trained."""

from typing import Annotated

from pydantic import Field

from whatfits.estimator.specs.base import PositiveInt, Spec
from whatfits.estimator.specs.enums import (
    ActivationCheckpointing,
    Attention,
    Framework,
    KeepOutputs,
    Loss,
    Method,
    OptimizerImplementation,
    OptimizerName,
    Precision,
)

__all__ = ["DEFAULT_SEQ_LEN", "AdapterSpec", "LoopSpec", "OptimizerSpec", "TrainingSpec"]

DEFAULT_SEQ_LEN = 2048
"""Sequence length when none is asked for; a model whose maximum is shorter gets its maximum."""


class OptimizerSpec(Spec):
    """The optimizer, and those of its settings that change bytes or work."""

    name: OptimizerName = OptimizerName.ADAMW
    """The method."""
    rank: PositiveInt | None = None
    """Rank of the low-rank projection; the method's default when left out, nothing for methods without one."""
    projection_update_interval: PositiveInt | None = None
    """Steps between two computations of the projection; the method's default when left out."""
    implementation: OptimizerImplementation = OptimizerImplementation.FOREACH
    """How torch walks over the parameters, for methods that offer a choice."""
    block_size: PositiveInt | None = None
    """Values that share one quantisation scale, for 8-bit states; the library's default when left out."""


class AdapterSpec(Spec):
    """A low-rank adapter."""

    rank: PositiveInt = 16
    """Rank of the adapter."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the linear layers that get one, or `all-linear`; the attention's four for lora and dora and all seven for qlora when left out."""


class LoopSpec(Spec):
    """Single conventions of the training loop, where they differ from the framework's."""

    set_grads_to_none: bool = True
    """Free gradients after the step instead of filling them with zeros."""
    keep_outputs: KeepOutputs = KeepOutputs.NO
    """How long the model's outputs, logits included, are held."""
    empty_cache_each_step: bool = False
    """Return the allocator's unused segments to the device before every step."""


class TrainingSpec(Spec):
    """Method, precision, optimizer, batch, sequence and the loop."""

    method: Method = Method.FULL
    """Which parameters train."""
    framework: Framework = Framework.PYTORCH
    """Whose training loop."""
    precision: Precision = Precision.BF16
    """Named set of dtypes."""
    micro_batch_size: PositiveInt = 1
    """Sequences per forward pass on each data-parallel rank."""
    seq_len: PositiveInt = DEFAULT_SEQ_LEN
    """Tokens per sequence."""
    grad_accum_steps: PositiveInt = 1
    """Forward and backward passes per optimizer step."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """The optimizer."""
    layerwise_update: bool = False
    """Update each parameter as soon as its gradient is ready, and free the gradient."""
    gradient_clipping: bool = False
    """Clip by the global gradient norm before the step."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE
    """Which activations are computed again."""
    checkpointing_policy: str | None = None
    """The rule of selective checkpointing: `ops` keeps attention and every second product of a layer, `every_<k>` checkpoints each k-th layer; `ops` when left out."""
    attention: Attention = Attention.AUTO
    """The attention implementation asked for."""
    loss: Loss = Loss.STANDARD
    """How logits become a loss."""
    compile: bool = False
    """Whether the model runs under torch.compile."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the attention weights."""
    packed_sequences: bool = False
    """Whether several documents share a sequence without attending to each other."""
    loop: LoopSpec = LoopSpec()
    """Conventions of the training loop."""
    adapter: AdapterSpec | None = None
    """The adapter, for methods that train one."""
    target_seq_len: PositiveInt | None = None
    """Tokens per target sequence, for encoder-decoder models."""
    image_size: PositiveInt | None = None
    """Pixels per side, for models that see images."""
