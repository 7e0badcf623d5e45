"""The methods that update every element by itself, in the parameters' dtype."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.facts import OptimizerFacts, ProgramSettings
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.memory.optimizers.torch_optim import AdamWForeach, AdamWForLoop, AdamWFused, Sgd
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName

__all__ = ["ELEMENTWISE"]


def _adamw(settings: ProgramSettings) -> OptimizerProgram:
    programs = {
        OptimizerImplementation.FOR_LOOP: AdamWForLoop,
        OptimizerImplementation.FOREACH: AdamWForeach,
        OptimizerImplementation.FUSED: AdamWFused,
    }
    return programs[settings.implementation](param_dtype_bytes=settings.param_dtype_bytes)


ELEMENTWISE: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.SGD: OptimizerFacts(
            title="SGD",
            summary="No state at all; rarely trains transformers well.",
            paper="Robbins and Monro: A Stochastic Approximation Method, 1951",
            source="torch.optim.SGD without momentum, PyTorch 2.13",
            implementations=tuple(OptimizerImplementation),
            build=lambda s: Sgd(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.ADAMW: OptimizerFacts(
            title="AdamW",
            summary="Two moments per parameter in the parameters' dtype; the reference the others are compared with.",
            paper="Loshchilov and Hutter: Decoupled Weight Decay Regularization, arXiv:1711.05101",
            source="torch.optim.AdamW, PyTorch 2.13",
            implementations=tuple(OptimizerImplementation),
            build=_adamw,
        ),
    }
)
