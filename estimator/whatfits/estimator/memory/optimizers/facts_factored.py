"""The methods with factored second moments, those fused into the backward pass, and those that train in blocks."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.adafactor import Adafactor
from whatfits.estimator.memory.optimizers.badam import BAdam
from whatfits.estimator.memory.optimizers.came import Came
from whatfits.estimator.memory.optimizers.facts import OptimizerFacts
from whatfits.estimator.memory.optimizers.lomo import AdaLomo, Lomo
from whatfits.estimator.specs import OptimizerName

__all__ = ["BLOCKWISE", "FACTORED", "IN_BACKWARD"]

FACTORED: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.ADAFACTOR: OptimizerFacts(
            title="Adafactor",
            summary="Row and column means in place of the second moment, no momentum: almost no state for matrices.",
            paper="Shazeer and Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235",
            source="torch.optim.Adafactor (the loop over parameters, its default), PyTorch 2.13",
            build=lambda s: Adafactor(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.CAME: OptimizerFacts(
            title="CAME",
            summary="Adafactor with momentum and a confidence for it: one state per parameter, twice that in the step.",
            paper="Luo et al.: CAME: Confidence-guided Adaptive Memory Efficient Optimization, arXiv:2307.02047",
            source="pytorch_optimizer.CAME, pytorch-optimizer 4.1.0",
            in_lists=True,
            build=lambda s: Came(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)

BLOCKWISE: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.BADAM: OptimizerFacts(
            title="BAdam",
            summary="AdamW in fp32 on one layer at a time: 12 bytes per parameter of one layer, gradients of one layer.",
            paper="Luo et al.: BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models, "
            "arXiv:2404.02827",
            source="badam.BlockOptimizer around AdamW (foreach), badam 1.4; activations as if every layer trained",
            in_lists=True,
            layerwise_possible=False,
            build=lambda s: BAdam(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)

IN_BACKWARD: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.LOMO: OptimizerFacts(
            title="LOMO",
            summary="SGD fused into the backward pass: no state, and never more than one gradient.",
            paper="Lv et al.: Full Parameter Fine-tuning for Large Language Models with Limited Resources, "
            "arXiv:2306.09782",
            source="pytorch_optimizer.LOMO, pytorch-optimizer 4.1.0",
            layerwise_only=True,
            can_accumulate=False,
            can_clip=False,
            build=lambda s: Lomo(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.ADALOMO: OptimizerFacts(
            title="AdaLomo",
            summary="Adafactor fused into the backward pass: row and column means, never more than one gradient.",
            paper="Lv et al.: AdaLomo: Low-memory Optimization with Adaptive Learning Rate, arXiv:2310.10195",
            source="pytorch_optimizer.AdaLOMO, pytorch-optimizer 4.1.0",
            layerwise_only=True,
            can_accumulate=False,
            can_clip=False,
            build=lambda s: AdaLomo(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)
