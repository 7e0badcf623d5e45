"""The methods that project gradients to a low rank, or keep full states of a part of the linear layers."""

from collections.abc import Mapping
from types import MappingProxyType

from whatfits.estimator.memory.optimizers.apollo import Apollo
from whatfits.estimator.memory.optimizers.facts import (
    PUBLISHED_OR_OWN,
    OptimizerFacts,
    ProgramSettings,
    RankRule,
)
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.memory.optimizers.frugal import Frugal
from whatfits.estimator.memory.optimizers.galore import GaLoreAdamW, GaLoreAdamW8bit
from whatfits.estimator.memory.optimizers.galore_adafactor import GaLoreAdafactor
from whatfits.estimator.memory.optimizers.own_galore_adafactor import OwnGaLoreAdafactor
from whatfits.estimator.memory.optimizers.own_low_rank import OwnApollo, OwnFira, OwnGaLore
from whatfits.estimator.memory.optimizers.own_quantised import OwnGaLore8bit
from whatfits.estimator.memory.optimizers.own_quantised_weights import OwnQApollo, OwnQGaLore
from whatfits.estimator.memory.optimizers.own_split import Gwt, OwnFrugal
from whatfits.estimator.memory.optimizers.own_subspace import LDAdam, SubTrack
from whatfits.estimator.memory.optimizers.program import OptimizerProgram
from whatfits.estimator.specs import OptimizerName

__all__ = ["LOW_RANK"]

_GALORE_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4: 128 at 512, 512 at 2048, 1024 at 4096 (arXiv:2403.03507, Table 2 and section 5.2)",
)
_APOLLO_RANK = RankRule(
    rank=lambda hidden_size: max(1, min(hidden_size // 4, 256)),
    text="hidden_size / 4, at most 256: 128, 192, 256, 256, 256 for 60M to 7B (zhuhanqing/APOLLO, scripts/pretrain_c4)",
)
_FIRA_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4: 128 at 512, 256 at 1024, 512 at 2048; at 768 the paper took 256 (arXiv:2410.01623, Table 3)",
)
_LDADAM_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4, as the paper pre-trains (arXiv:2410.16103, section 5); the released optimizer's default is 16",
)
_SUBTRACK_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4: 128 at 512, 512 at 2048 (arXiv:2502.01586, appendix: pre-training)",
)
_FRUGAL_RANK = RankRule(
    rank=lambda hidden_size: max(1, hidden_size // 4),
    text="hidden_size / 4, the density 0.25 of the linear layers' tensors (fzmushko/FRUGAL, scripts/benchmark_c4)",
)
_GALORE_PAPER = (
    "Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, arXiv:2403.03507"
)
_APOLLO_PAPER = "Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270"


def _galore_adamw_8bit(settings: ProgramSettings) -> OptimizerProgram:
    if settings.is_own_code:
        return OwnGaLore8bit(
            param_dtype_bytes=settings.param_dtype_bytes,
            rank=settings.rank,
            update_interval=settings.update_interval,
        )
    return GaLoreAdamW8bit(
        param_dtype_bytes=settings.param_dtype_bytes,
        rank=settings.rank,
        update_interval=settings.update_interval,
        block_size=settings.block_size,
    )


LOW_RANK: Mapping[OptimizerName, OptimizerFacts] = MappingProxyType(
    {
        OptimizerName.GALORE_ADAMW: OptimizerFacts(
            title="GaLore",
            summary="AdamW on gradients projected by SVD: moments of linear layers shrink to rank / shorter side.",
            paper=_GALORE_PAPER,
            source="galore_torch.GaLoreAdamW, galore-torch 1.0",
            default_rank=_GALORE_RANK,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnGaLore if s.is_own_code else GaLoreAdamW)(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.GALORE_ADAMW_8BIT: OptimizerFacts(
            title="8-bit GaLore",
            summary="GaLore with 8-bit moments; with layer-wise updates it trains 7B models in 24 GB.",
            paper=_GALORE_PAPER,
            source="galore_torch.GaLoreAdamW8bit, galore-torch 1.0, with bitsandbytes 0.50.2's block-wise states",
            default_rank=_GALORE_RANK,
            has_block_size=True,
            implementations=PUBLISHED_OR_OWN,
            build=_galore_adamw_8bit,
        ),
        OptimizerName.Q_GALORE: OptimizerFacts(
            title="Q-GaLore",
            summary="GaLore with 8-bit moments, 4-bit projections, fewer SVDs, and weights that can be 8-bit integers.",
            paper="Zhang et al.: Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients, "
            "arXiv:2407.08296",
            source="whatfits.optim_impls.q_galore, weights in the parameters' dtype",
            default_rank=_GALORE_RANK,
            build=lambda s: OwnQGaLore(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.Q_APOLLO: OptimizerFacts(
            title="Q-APOLLO",
            summary="APOLLO with 8-bit moments, its projection drawn anew, and weights that can be 8-bit integers.",
            paper=_APOLLO_PAPER,
            source="whatfits.optim_impls.q_apollo, weights in the parameters' dtype",
            default_rank=_APOLLO_RANK,
            build=lambda s: OwnQApollo(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.Q_APOLLO_MINI: OptimizerFacts(
            title="Q-APOLLO-Mini",
            summary="APOLLO-Mini, almost without state for linear layers, with weights that can be 8-bit integers.",
            paper=_APOLLO_PAPER,
            source="whatfits.optim_impls.q_apollo, weights in the parameters' dtype",
            default_rank=RankRule(rank=lambda _: 1, text="1 (arXiv:2412.05270, section 4.2)"),
            build=lambda s: OwnQApollo(
                param_dtype_bytes=s.param_dtype_bytes,
                rank=s.rank,
                update_interval=s.update_interval,
                scales_tensor=True,
            ),
        ),
        OptimizerName.GALORE_ADAFACTOR: OptimizerFacts(
            title="GaLore with Adafactor",
            summary="Row and column means of the projected gradient instead of moments; everything in fp32.",
            paper=_GALORE_PAPER,
            source="galore_torch.GaLoreAdafactor, galore-torch 1.0",
            default_rank=_GALORE_RANK,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnGaLoreAdafactor if s.is_own_code else GaLoreAdafactor)(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.FIRA: OptimizerFacts(
            title="Fira",
            summary="GaLore plus the residual it drops, scaled: GaLore's state, the update of full rank.",
            paper="Chen et al.: Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?, "
            "arXiv:2410.01623",
            source="pytorch_optimizer.Fira, pytorch-optimizer 4.1.0",
            default_rank=_FIRA_RANK,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnFira if s.is_own_code else Fira)(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.LDADAM: OptimizerFacts(
            title="LDAdam",
            summary="AdamW's moments in a subspace that follows the gradient at every step, with error feedback.",
            paper="Robert et al.: LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics, "
            "arXiv:2410.16103",
            source="whatfits.optim_impls.ldadam; the released code keeps the error in the gradient's memory instead",
            default_rank=_LDADAM_RANK,
            build=lambda s: LDAdam(param_dtype_bytes=s.param_dtype_bytes, rank=s.rank),
        ),
        OptimizerName.SUBTRACK: OptimizerFacts(
            title="SubTrack++",
            summary="GaLore's state with a subspace that is turned along the gradient's error, plus the residual.",
            paper="Rajabi et al.: SubTrack++: Gradient Subspace Tracking for Scalable LLM Training, arXiv:2502.01586",
            source="whatfits.optim_impls.subtrack; the released code has no licence",
            default_rank=_SUBTRACK_RANK,
            build=lambda s: SubTrack(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.GWT: OptimizerFacts(
            title="GWT",
            summary="AdamW's moments of coarse wavelet coefficients: a quarter of AdamW's states for matrices at level 2.",
            paper="Wen et al.: Wavelet Meets Adam: Compressing Gradients for Memory-Efficient Training, "
            "arXiv:2501.07237",
            source="whatfits.optim_impls.gwt at level 2; the authors' repository has no licence",
            build=lambda s: Gwt(param_dtype_bytes=s.param_dtype_bytes),
        ),
        OptimizerName.FRUGAL: OptimizerFacts(
            title="FRUGAL",
            summary="AdamW for a quarter of the linear layers' tensors in turn, signs of gradients for the rest.",
            paper="Zmushko et al.: FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable "
            "Training, arXiv:2411.07837",
            source="fzmushko/FRUGAL, commit c7ebe4c, optimizer `frugal` (state and allocations as traced)",
            default_rank=_FRUGAL_RANK,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnFrugal if s.is_own_code else Frugal)(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
            layerwise_possible=False,
        ),
        OptimizerName.APOLLO: OptimizerFacts(
            title="APOLLO",
            summary="Scales raw gradients per channel by moments of a random low-rank projection; no SVD.",
            paper=_APOLLO_PAPER,
            source="apollo-torch 1.0.3 (state and allocations as traced)",
            default_rank=_APOLLO_RANK,
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnApollo if s.is_own_code else Apollo)(
                param_dtype_bytes=s.param_dtype_bytes, rank=s.rank, update_interval=s.update_interval
            ),
        ),
        OptimizerName.APOLLO_MINI: OptimizerFacts(
            title="APOLLO-Mini",
            summary="APOLLO with rank 1 and one factor per matrix: almost no state for linear layers.",
            paper=_APOLLO_PAPER,
            source="apollo-torch 1.0.3 (state and allocations as traced)",
            default_rank=RankRule(rank=lambda _: 1, text="1 (arXiv:2412.05270, section 4.2)"),
            implementations=PUBLISHED_OR_OWN,
            build=lambda s: (OwnApollo if s.is_own_code else Apollo)(
                param_dtype_bytes=s.param_dtype_bytes,
                rank=s.rank,
                update_interval=s.update_interval,
                scales_tensor=True,
            ),
        ),
    }
)
