"""The optimizers there are: what each is, its default rank, and the program that answers for its memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.apollo import Apollo
from whatfits.estimator.memory.optimizers.blockwise_8bit import DEFAULT_BLOCK_SIZE, AdamW8bit
from whatfits.estimator.memory.optimizers.galore import GaLoreAdamW, GaLoreAdamW8bit
from whatfits.estimator.memory.optimizers.low_rank import DEFAULT_UPDATE_INTERVAL
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.memory.optimizers.torch_optim import AdamWForeach, AdamWForLoop, AdamWFused, Sgd
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec

__all__ = ["OPTIMIZERS", "OptimizerFacts", "RankRule", "build_optimizer_program"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRule:
    """Default rank of a low-rank method."""

    rank: Callable[[int], int]
    """Rank for a hidden size."""
    text: str
    """The rule in words, with its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """What a person choosing an optimizer should know."""

    title: str
    summary: str
    """What it saves, in one sentence."""
    paper: str
    source: str
    """The code whose memory behaviour is modelled."""
    default_rank: RankRule | None = None
    """None for methods without a rank."""
    implementations: tuple[OptimizerImplementation, ...] = ()
    """Choices of `OptimizerSpec.implementation`; empty where there is one way only."""
    has_block_size: bool = False
    layerwise_possible: bool = True
    """Whether each parameter can be updated as soon as its gradient is there."""
    can_accumulate: bool = True
    """Whether gradients can be accumulated over micro-batches (never with a layer-wise update)."""
    can_clip: bool = True
    """Whether the global gradient norm can be clipped (never with a layer-wise update)."""

    @property
    def has_rank(self) -> bool:
        """Whether the method projects gradients to a low rank."""
        return self.default_rank is not None


_GALORE_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4: 128 at 512, 512 at 2048, 1024 at 4096 (arXiv:2403.03507, Table 2 and section 5.2)",
)
_APOLLO_RANK = RankRule(
    rank=lambda hidden_size: max(1, min(hidden_size // 4, 256)),
    text="hidden_size / 4, at most 256: 128, 192, 256, 256, 256 for 60M to 7B (zhuhanqing/APOLLO, scripts/pretrain_c4)",
)
_GALORE_PAPER = (
    "Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507"
)
_APOLLO_PAPER = "Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270"

OPTIMIZERS: Mapping[str, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.SGD: OptimizerFacts(
            title="SGD",
            summary="No state at all; rarely trains transformers well.",
            paper="Robbins and Monro: A Stochastic Approximation Method, 1951",
            source="torch.optim.SGD without momentum, PyTorch 2.13",
            implementations=tuple(OptimizerImplementation),
        ),
        OptimizerName.ADAMW: OptimizerFacts(
            title="AdamW",
            summary="Two moments per parameter in the parameters' dtype; the reference the others are compared with.",
            paper="Loshchilov and Hutter: Decoupled Weight Decay Regularization, arXiv:1711.05101",
            source="torch.optim.AdamW, PyTorch 2.13",
            implementations=tuple(OptimizerImplementation),
        ),
        OptimizerName.ADAMW_8BIT: OptimizerFacts(
            title="8-bit AdamW",
            summary="Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
            paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
            source="bitsandbytes.optim.AdamW8bit, bitsandbytes 0.50.2",
            has_block_size=True,
        ),
        OptimizerName.GALORE_ADAMW: OptimizerFacts(
            title="GaLore",
            summary="AdamW on gradients projected by SVD: moments of linear layers shrink to rank / shorter side.",
            paper=_GALORE_PAPER,
            source="galore_torch.GaLoreAdamW, galore-torch 1.0",
            default_rank=_GALORE_RANK,
        ),
        OptimizerName.GALORE_ADAMW_8BIT: OptimizerFacts(
            title="8-bit GaLore",
            summary="GaLore with 8-bit moments; with layer-wise updates it trains 7B models in 24 GB.",
            paper=_GALORE_PAPER,
            source="galore_torch.GaLoreAdamW8bit, galore-torch 1.0, with bitsandbytes 0.50.2's block-wise states",
            default_rank=_GALORE_RANK,
            has_block_size=True,
        ),
        OptimizerName.APOLLO: OptimizerFacts(
            title="APOLLO",
            summary="Scales raw gradients per channel by moments of a random low-rank projection; no SVD.",
            paper=_APOLLO_PAPER,
            source="apollo-torch 1.0.3 (state and allocations as traced)",
            default_rank=_APOLLO_RANK,
        ),
        OptimizerName.APOLLO_MINI: OptimizerFacts(
            title="APOLLO-Mini",
            summary="APOLLO with rank 1 and one factor per matrix: almost no state for linear layers.",
            paper=_APOLLO_PAPER,
            source="apollo-torch 1.0.3 (state and allocations as traced)",
            default_rank=RankRule(rank=lambda _: 1, text="1 (arXiv:2412.05270, section 4.2)"),
        ),
    }
)


def build_optimizer_program(
    spec: OptimizerSpec, *, param_dtype_bytes: int, hidden_size: int, fp32_embeddings: bool = False
) -> OptimizerProgram:
    """The memory program of an optimizer.

    Args:
        spec: The optimizer and its settings; what it leaves out takes the method's default.
        param_dtype_bytes: Bytes per element of the parameters the optimizer updates.
        hidden_size: The model's, for the default rank.
        fp32_embeddings: Whether `adamw_8bit` keeps 32-bit states of embeddings, as Hugging Face's Trainer has it do.
    """
    rank = spec.rank
    rule = OPTIMIZERS[spec.name].default_rank
    if rule is not None and rank is None:
        rank = rule.rank(hidden_size)
    return _build(
        spec.name,
        spec.implementation,
        param_dtype_bytes,
        rank or 1,
        spec.projection_update_interval or DEFAULT_UPDATE_INTERVAL,
        spec.block_size or DEFAULT_BLOCK_SIZE,
        fp32_embeddings,
    )


@lru_cache(maxsize=4096)
def _build(
    name: OptimizerName,
    implementation: OptimizerImplementation,
    dtype_bytes: int,
    rank: int,
    interval: int,
    block_size: int,
    fp32_embeddings: bool,
) -> OptimizerProgram:
    """One program per setting, so that what it has evaluated is not evaluated again."""
    program: OptimizerProgram
    match name:
        case OptimizerName.SGD:
            program = Sgd(param_dtype_bytes=dtype_bytes)
        case OptimizerName.ADAMW:
            adamw = {
                OptimizerImplementation.FOR_LOOP: AdamWForLoop,
                OptimizerImplementation.FOREACH: AdamWForeach,
                OptimizerImplementation.FUSED: AdamWFused,
            }
            program = adamw[implementation](param_dtype_bytes=dtype_bytes)
        case OptimizerName.ADAMW_8BIT:
            program = AdamW8bit(
                param_dtype_bytes=dtype_bytes, block_size=block_size, fp32_embeddings=fp32_embeddings
            )
        case OptimizerName.GALORE_ADAMW:
            program = GaLoreAdamW(param_dtype_bytes=dtype_bytes, rank=rank, update_interval=interval)
        case OptimizerName.GALORE_ADAMW_8BIT:
            program = GaLoreAdamW8bit(
                param_dtype_bytes=dtype_bytes, rank=rank, update_interval=interval, block_size=block_size
            )
        case OptimizerName.APOLLO:
            program = Apollo(param_dtype_bytes=dtype_bytes, rank=rank, update_interval=interval)
        case OptimizerName.APOLLO_MINI:
            program = Apollo(
                param_dtype_bytes=dtype_bytes, rank=rank, update_interval=interval, scales_tensor=True
            )
    return program
