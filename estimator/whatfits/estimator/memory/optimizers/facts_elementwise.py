"""The methods that update every element by itself, in the parameters' dtype."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.adan import Adan
from whatfits.estimator.memory.optimizers.facts import (
    PUBLISHED_OR_OWN,
    TORCH_IMPLEMENTATIONS,
    OptimizerFacts,
    ProgramSettings,
)
from whatfits.estimator.memory.optimizers.lamb import Lamb
from whatfits.estimator.memory.optimizers.lion import Lion
from whatfits.estimator.memory.optimizers.own_elementwise import Mezo, OwnAdan, OwnLion, OwnSophiaG, Sm3
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.memory.optimizers.schedule_free import ScheduleFreeAdamW
from whatfits.estimator.memory.optimizers.sophia import SophiaG
from whatfits.estimator.memory.optimizers.torch_optim import (
    AdamWForeach,
    AdamWForLoop,
    AdamWFused,
    Sgd,
    SgdMomentum,
)
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName

__all__ = ["ELEMENTWISE"]


def _adamw(settings: ProgramSettings) -> OptimizerProgram:
    programs: dict[OptimizerImplementation, Callable[..., OptimizerProgram]] = {
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
            implementations=TORCH_IMPLEMENTATIONS,
            build=lambda s: Sgd(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.SGDM: OptimizerFacts(
            title="SGD with momentum",
            summary="One momentum per parameter in the parameters' dtype, half of AdamW's states.",
            paper="Polyak: Some methods of speeding up the convergence of iteration methods, 1964",
            source="torch.optim.SGD with momentum, PyTorch 2.13",
            implementations=TORCH_IMPLEMENTATIONS,
            build=lambda s: SgdMomentum(
                param_dtype_bytes=s.param_dtype_bytes,
                is_fused=s.implementation is OptimizerImplementation.FUSED,
            ),
        ),
        OptimizerName.ADAMW: OptimizerFacts(
            title="AdamW",
            summary="Two moments per parameter in the parameters' dtype; the reference the others are compared with.",
            paper="Loshchilov and Hutter: Decoupled Weight Decay Regularization, arXiv:1711.05101",
            source="torch.optim.AdamW, PyTorch 2.13",
            implementations=TORCH_IMPLEMENTATIONS,
            build=_adamw,
        ),
        OptimizerName.SCHEDULE_FREE_ADAMW: OptimizerFacts(
            title="Schedule-Free AdamW",
            summary="AdamW without a learning-rate schedule; the same two states per parameter.",
            paper="Defazio et al.: The Road Less Scheduled, arXiv:2405.15682",
            source="schedulefree.AdamWScheduleFree (foreach), schedulefree 1.4.1",
            in_lists=True,
            build=lambda s: ScheduleFreeAdamW(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.LION: OptimizerFacts(
            title="Lion",
            summary="The sign of a momentum: one state per parameter, half of AdamW's.",
            paper="Chen et al.: Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675",
            source="pytorch_optimizer.Lion, pytorch-optimizer 4.1.0",
            in_lists=True,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnLion if s.is_own_code else Lion)(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.ADAN: OptimizerFacts(
            title="Adan",
            summary="Three moments and the last gradient: twice AdamW's states, for fewer steps.",
            paper="Xie et al.: Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, arXiv:2208.06677",
            source="pytorch_optimizer.Adan, pytorch-optimizer 4.1.0",
            in_lists=True,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnAdan if s.is_own_code else Adan)(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.SM3: OptimizerFacts(
            title="SM3",
            summary="One number per row and per column in place of AdamW's moments: almost no state.",
            paper="Anil et al.: Memory-Efficient Adaptive Optimization, arXiv:1901.11150",
            source="whatfits.optim_impls.sm3, without momentum; the published packages keep a momentum unused",
            build=lambda s: Sm3(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.MEZO: OptimizerFacts(
            title="MeZO",
            summary="Two forward passes in place of gradients: no state, no gradients, no stored activations.",
            paper="Malladi et al.: Fine-Tuning Language Models with Just Forward Passes, arXiv:2305.17333",
            source="whatfits.optim_impls.mezo; the step alone, as runs without a backward pass are not modelled yet",
            layerwise_possible=False,
            can_accumulate=False,
            can_clip=False,
            build=lambda s: Mezo(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.LAMB: OptimizerFacts(
            title="LAMB",
            summary="AdamW's states with a trust ratio per tensor, for very large batches.",
            paper="You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962",
            source="pytorch_optimizer.Lamb, pytorch-optimizer 4.1.0",
            in_lists=True,
            build=lambda s: Lamb(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.SOPHIA: OptimizerFacts(
            title="Sophia",
            summary="Momentum over an estimated Hessian diagonal: AdamW's two states, larger temporaries.",
            paper="Liu et al.: Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training, arXiv:2305.14342",
            source="SophiaG, Liuhong99/Sophia commit a7e1572",
            layerwise_possible=False,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnSophiaG if s.is_own_code else SophiaG)(param_dtype_bytes=s.param_dtype_bytes),
        ),
    }
)
