"""The methods that keep their states in fewer bits than the parameters."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.blockwise_8bit import AdamW8bit
from whatfits.estimator.memory.optimizers.facts import OptimizerFacts
from whatfits.estimator.specs import OptimizerName

__all__ = ["QUANTISED"]

QUANTISED: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.ADAMW_8BIT: OptimizerFacts(
            title="8-bit AdamW",
            summary="Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="bitsandbytes.optim.AdamW8bit, bitsandbytes 0.50.2",
            has_block_size=True,
            build=lambda s: AdamW8bit(
                param_dtype_bytes=s.param_dtype_bytes,
                block_size=s.block_size,
                fp32_embeddings=s.fp32_embeddings,
            ),
        ),
    }
)
