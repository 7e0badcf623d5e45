"""The methods that keep their states in fewer bits than the parameters."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.blockwise_8bit import AdamW8bit
from whatfits.estimator.memory.optimizers.facts import PUBLISHED_OR_OWN, OptimizerFacts, ProgramSettings
from whatfits.estimator.memory.optimizers.low_bit import AdamW4bit, AdamWFp8
from whatfits.estimator.memory.optimizers.own_quantised import (
    ADAM,
    LION,
    SGDM,
    Blockwise8bitMethod,
    OwnBlockwise8bit,
)
from whatfits.estimator.memory.optimizers.paged import PagedAdamW, PagedAdamW8bit
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.specs import OptimizerName

__all__ = ["QUANTISED"]


def _own(settings: ProgramSettings, method: Blockwise8bitMethod) -> OptimizerProgram:
    return OwnBlockwise8bit(
        param_dtype_bytes=settings.param_dtype_bytes,
        method=method,
        fp32_embeddings=settings.fp32_embeddings,
    )


def _adamw_8bit(settings: ProgramSettings) -> OptimizerProgram:
    if settings.is_own_code:
        return _own(settings, ADAM)
    return AdamW8bit(
        param_dtype_bytes=settings.param_dtype_bytes,
        block_size=settings.block_size,
        fp32_embeddings=settings.fp32_embeddings,
    )


QUANTISED: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.ADAMW_8BIT: OptimizerFacts(
            title="8-bit AdamW",
            summary="Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="bitsandbytes.optim.AdamW8bit, bitsandbytes 0.50.2",
            has_block_size=True,
            implementations=PUBLISHED_OR_OWN,
            build=_adamw_8bit,
        ),
        OptimizerName.ADAM_8BIT: OptimizerFacts(
            title="8-bit Adam",
            summary="Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="whatfits.optim_impls.blockwise_8bit",
            build=lambda s: _own(s, ADAM),
        ),
        OptimizerName.SGDM_8BIT: OptimizerFacts(
            title="8-bit SGD with momentum",
            summary="Momentum in 8 bits, about 1 byte per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="whatfits.optim_impls.blockwise_8bit",
            build=lambda s: _own(s, SGDM),
        ),
        OptimizerName.LION_8BIT: OptimizerFacts(
            title="8-bit Lion",
            summary="Lion's momentum in 8 bits, about 1 byte per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="whatfits.optim_impls.blockwise_8bit",
            build=lambda s: _own(s, LION),
        ),
        OptimizerName.PAGED_ADAMW: OptimizerFacts(
            title="Paged AdamW",
            summary="fp32 moments in managed memory, which gives way to the host when the GPU is full.",
            paper="Dettmers et al.: QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314",
            source="bitsandbytes.optim.PagedAdamW, bitsandbytes 0.50.2",
            build=lambda s: PagedAdamW(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.PAGED_ADAMW_8BIT: OptimizerFacts(
            title="Paged 8-bit AdamW",
            summary="8-bit moments in managed memory, which gives way to the host when the GPU is full.",
            paper="Dettmers et al.: QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314",
            source="bitsandbytes.optim.PagedAdamW8bit, bitsandbytes 0.50.2",
            has_block_size=True,
            build=lambda s: PagedAdamW8bit(
                param_dtype_bytes=s.param_dtype_bytes,
                block_size=s.block_size,
                fp32_embeddings=s.fp32_embeddings,
            ),
        ),
        OptimizerName.ADAMW_4BIT: OptimizerFacts(
            title="4-bit AdamW",
            summary="Both moments in 4 bits, about 1 byte per parameter.",
            paper="Li et al.: Memory Efficient Optimizers with 4-bit States, arXiv:2309.01507",
            source="torchao.optim.AdamW4bit, torchao 0.18.0, compiled by torch 2.11",
            build=lambda s: AdamW4bit(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.ADAMW_FP8: OptimizerFacts(
            title="fp8 AdamW",
            summary="Both moments in fp8, about 2 bytes per parameter.",
            paper="Fishman et al.: Scaling FP8 training to trillion-token LLMs, arXiv:2409.12517",
            source="torchao.optim.AdamWFp8, torchao 0.18.0, compiled by torch 2.11",
            build=lambda s: AdamWFp8(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)
