"""The methods that treat a matrix as a whole, or by its blocks, without a low-rank projection."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.adam_mini import AdamMini
from whatfits.estimator.memory.optimizers.facts import OptimizerFacts
from whatfits.estimator.memory.optimizers.muon import Muon
from whatfits.estimator.memory.optimizers.soap import Soap
from whatfits.estimator.specs import OptimizerName

__all__ = ["MATRIX"]

MATRIX: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.ADAM_MINI: OptimizerFacts(
            title="Adam-mini",
            summary="A momentum per element in fp32, and second moments per head or matrix instead of per element.",
            paper="Zhang et al.: Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793",
            source="pytorch_optimizer.AdamMini, pytorch-optimizer 4.1.0",
            build=lambda s: AdamMini(param_dtype_bytes=s.param_dtype_bytes),
            layerwise_possible=False,
        ),
        OptimizerName.MUON: OptimizerFacts(
            title="Muon",
            summary="One momentum for linear layers, whose update is made orthogonal; AdamW for all other parameters.",
            paper="Jordan et al.: Muon: An optimizer for hidden layers in neural networks, "
            "https://kellerjordan.github.io/posts/muon/",
            source="torch.optim.Muon and torch.optim.AdamW, PyTorch 2.13",
            build=lambda s: Muon(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.SOAP: OptimizerFacts(
            title="SOAP",
            summary="AdamW's moments and two squares for each side of a matrix: more memory, fewer steps.",
            paper="Vyas et al.: SOAP: Improving and Stabilizing Shampoo using Adam, arXiv:2409.11321",
            source="pytorch_optimizer.SOAP, pytorch-optimizer 4.1.0",
            build=lambda s: Soap(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)
"""The methods that treat a matrix as a whole, or by its blocks, without a low-rank projection."""
