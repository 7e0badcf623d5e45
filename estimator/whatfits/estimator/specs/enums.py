"""The closed lists of names that specs are written in."""

from enum import StrEnum

__all__ = [
    "ActivationCheckpointing",
    "AllocatorMode",
    "Attention",
    "Basis",
    "Dtype",
    "Framework",
    "Inputs",
    "KeepOutputs",
    "Loss",
    "Method",
    "Objective",
    "Offload",
    "OptimizerImplementation",
    "OptimizerName",
    "PeakPhase",
    "Precision",
    "Verdict",
]


class Method(StrEnum):
    """Which parameters train."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"
    DORA = "dora"


class Inputs(StrEnum):
    """What a model is trained on."""

    TOKENS = "tokens"
    TOKENS_AND_TARGETS = "tokens_and_targets"
    IMAGES = "images"
    IMAGES_AND_TOKENS = "images_and_tokens"
    FEATURES = "features"


class Framework(StrEnum):
    """Whose training loop, and so whose memory conventions, apply."""

    PYTORCH = "pytorch"
    HF_TRAINER = "hf_trainer"
    FSDP2 = "fsdp2"
    DEEPSPEED = "deepspeed"
    MEGATRON = "megatron"


class Precision(StrEnum):
    """Named sets of dtypes; `expand_precision` spells them out."""

    FP32 = "fp32"
    BF16 = "bf16"
    BF16_MIXED = "bf16_mixed"
    BF16_MASTER = "bf16_master"
    FP16_MIXED = "fp16_mixed"
    FP8 = "fp8"


class Dtype(StrEnum):
    """Element types of tensors."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"

    @property
    def nbytes(self) -> int:
        """Bytes per element."""
        return {Dtype.FP32: 4, Dtype.BF16: 2, Dtype.FP16: 2, Dtype.FP8: 1}[self]


class OptimizerName(StrEnum):
    """The optimizers a question can name."""

    SGD = "sgd"
    SGDM = "sgdm"
    ADAMW = "adamw"
    PAGED_ADAMW = "paged_adamw"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    ADAM_8BIT = "adam_8bit"
    SGDM_8BIT = "sgdm_8bit"
    LION_8BIT = "lion_8bit"
    ADAMW_4BIT = "adamw_4bit"
    ADAMW_FP8 = "adamw_fp8"
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"
    LION = "lion"
    ADAN = "adan"
    SM3 = "sm3"
    LAMB = "lamb"
    SOPHIA = "sophia"
    ADAFACTOR = "adafactor"
    CAME = "came"
    ADAM_MINI = "adam_mini"
    LOMO = "lomo"
    ADALOMO = "adalomo"
    BADAM = "badam"
    MEZO = "mezo"
    GWT = "gwt"
    FRUGAL = "frugal"
    GALORE_ADAMW = "galore_adamw"
    GALORE_ADAMW_8BIT = "galore_adamw_8bit"
    GALORE_ADAFACTOR = "galore_adafactor"
    FIRA = "fira"
    LDADAM = "ldadam"
    SUBTRACK = "subtrack"
    Q_GALORE = "q_galore"
    APOLLO = "apollo"
    APOLLO_MINI = "apollo_mini"
    Q_APOLLO = "q_apollo"
    Q_APOLLO_MINI = "q_apollo_mini"
    MUON = "muon"
    SOAP = "soap"


class OptimizerImplementation(StrEnum):
    """Whose code steps, and how it walks over the parameters.

    A method with one published form has it under `foreach`, the default; `whatfits` is the code of
    `whatfits.optim_impls` where that differs in memory from the published one.
    """

    FOR_LOOP = "for_loop"
    FOREACH = "foreach"
    FUSED = "fused"
    WHATFITS = "whatfits"


class ActivationCheckpointing(StrEnum):
    """Which activations are dropped in the forward pass and computed again in the backward pass."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Attention(StrEnum):
    """The attention implementation the user asks for; the kernel it ends in stands in the provenance."""

    AUTO = "auto"
    SDPA = "sdpa"
    EAGER = "eager"
    FLASH_ATTENTION_2 = "flash_attention_2"


class Loss(StrEnum):
    """How logits become a loss."""

    STANDARD = "standard"
    CHUNKED = "chunked"
    FUSED_LINEAR = "fused_linear"


class KeepOutputs(StrEnum):
    """How long a training loop holds the model's outputs, of which the logits are the large one."""

    NO = "no"
    """Only the loss is kept of them."""
    BACKWARD = "backward"
    """Until the backward pass is over."""
    STEP = "step"
    """Until the optimizer has stepped."""


class Offload(StrEnum):
    """What lives in host memory between uses."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    PARAMETERS = "parameters"


class AllocatorMode(StrEnum):
    """The caching allocator's segments: fixed, or growing in place (`expandable_segments:True`)."""

    CLASSIC = "classic"
    EXPANDABLE = "expandable"


class Objective(StrEnum):
    """What a plan is ranked by."""

    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"
    QUALITY = "quality"


class Verdict(StrEnum):
    """Whether a run fits: `yes` at a probability of 0.95 and above, `no` at 0.05 and below."""

    YES = "yes"
    NO = "no"
    UNCERTAIN = "uncertain"


class PeakPhase(StrEnum):
    """The part of a step in which memory is highest."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER_STEP = "optimizer_step"


class Basis(StrEnum):
    """What an answer rests on."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ANALYTICAL = "analytical"
