"""What is traced: the dims of a model and a micro-batch, and everything that makes two traces structurally different."""

import re
from dataclasses import dataclass

__all__ = ["BASE_LAYERS", "NUM_DEPTHS", "AdapterOptions", "Dims", "StepOptions", "checkpointing_period"]

BASE_LAYERS = 3
"""Layers of the shallowest trace: the first, the last, and one between them."""
NUM_DEPTHS = 4
"""Depths that are traced of a stack that repeats."""

_EVERY = re.compile(r"every_([2-9]|[1-9]\d+)")

Dims = dict[str, int]
"""Values of the symbols: L layers, h hidden, i intermediate, a heads, k kv heads, d head dim, V vocabulary,
b micro-batch, s sequence, r adapter rank; with a config, L, b and s alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """A low-rank adapter made by peft; its rank is the dim `r`."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    dora: bool = False
    quantized: bool = False
    """Whether the frozen weights are 4-bit (QLoRA)."""
    dropout: float = 0.0
    frozen: str = "fp32"
    """fp32 | bf16. Dtype of the frozen weights under a mixed precision; a pure precision stores everything alike."""
    autocast_adapter: bool = True
    """Whether peft stores the adapter in fp32 over a half-precision base, its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What makes two traces structurally different, apart from the dims."""

    architecture: str = "LlamaForCausalLM"
    config: str = ""
    """JSON text of a Hugging Face config whose model is traced; without one the dims say all there is to know."""
    factory: str = ""
    """MODULE:FACTORY of a module of the user's own, in place of a model of transformers."""
    tie_embeddings: bool = False
    precision: str = "bf16"
    """fp32 | bf16 | bf16_mixed | fp16_mixed. Dtypes of module and compute: mixed ones are an fp32 module under autocast, fp16 with a scaled loss."""
    attention: str = "sdpa"
    """sdpa | eager. The implementation the model is asked for; the kernel follows from it, the mask and the device."""
    kernels: tuple[str, ...] = ("flash", "efficient", "math")
    """Kernels SDPA may choose, in order of preference: the device's."""
    mask: str = "none"
    """none | ones | padded | packed. Which attention mask the batch carries: none, one without padding, one with, or restarting positions."""
    dropout: float = 0.0
    """Attention dropout."""
    checkpointing: str = "none"
    """none | full | every_<k> | ops. Which activations are computed again; see `checkpoints`."""
    loss: str = "standard"
    """standard | chunked | fused_linear"""
    adapter: AdapterOptions | None = None
    keep_outputs: bool = False
    """Whether the loop holds the model's outputs until the end of the step."""


def checkpointing_period(name: str) -> int:
    """After how many layers the pattern of a checkpointing policy repeats.

    Raises:
        ValueError: no policy has that name.
    """
    if name in ("none", "full", "ops"):
        return 1
    found = _EVERY.fullmatch(name)
    if found is None:
        raise ValueError(f"unknown checkpointing {name!r}; known: none, full, ops, every_<k> from every_2 on")
    return int(found[1])
