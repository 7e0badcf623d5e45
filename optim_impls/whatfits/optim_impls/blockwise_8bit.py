"""Adam, AdamW, SGD with momentum and Lion with 8-bit states: one byte a state instead of four.

Tim Dettmers, Mike Lewis, Sam Shleifer, Luke Zettlemoyer: 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861, section 2. Tensors below 4096 elements keep fp32 states, as in bitsandbytes, and so do those of a
`StableEmbedding`. Lion: arXiv:2302.06675, Algorithm 2.

Differs from the paper: blocks of 256 elements instead of 2048, as in bitsandbytes 0.50. `adam_8bit` adds weight decay
to the gradient, as Adam does; bitsandbytes' Adam8bit decouples it, which is `adamw_8bit` here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_fraction,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.blockwise import (
    CHUNK_SIZE,
    MIN_8BIT_SIZE,
    ChunkUpdate,
    Moment,
    init_moments,
    is_quantised,
    largest_chunk,
    load_codebooks,
    moment_states,
    shared_maps,
    update_in_chunks,
    workspace_bytes,
)
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.quantize import BLOCK_SIZE
from whatfits.optim_impls.stable_embedding import wants_fp32_states

__all__ = ["ADAM_MOMENTS", "ENTRIES", "Blockwise8bit", "adam_update", "lion_update", "sgdm_update"]

ADAM_MOMENTS = (Moment("exp_avg", is_signed=True), Moment("exp_avg_sq", is_signed=False))
MOMENTS: Mapping[str, Sequence[Moment]] = {
    "adam": ADAM_MOMENTS,
    "adamw": ADAM_MOMENTS,
    "sgdm": (Moment("momentum_buffer", is_signed=True),),
    "lion": (Moment("exp_avg", is_signed=True),),
}
STEP_COUNT_BYTES = 4


def adam_update(
    param: Tensor,  # (k,) fp32
    grad: Tensor,  # (k,) fp32
    moments: Sequence[Tensor],  # exp_avg and exp_avg_sq, (k,) fp32
    *,
    count: Tensor,  # () fp32: the step, from 1
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decouples: bool,
) -> None:
    """Adam, or AdamW where weight decay is decoupled, in one pass in place."""
    kernel = torch._fused_adamw_ if decouples else torch._fused_adam_
    kernel(
        [param],
        [grad],
        [moments[0]],
        [moments[1]],
        [],
        [count],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def sgdm_update(
    param: Tensor,  # (k,) fp32
    grad: Tensor,  # (k,) fp32
    moments: Sequence[Tensor],  # momentum_buffer, (k,) fp32
    *,
    is_first: bool,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step: m <- momentum m + g + weight_decay p (in the first step without the factor), p <- p - lr m."""
    (buffer,) = moments
    buffer.mul_(0.0 if is_first else momentum).add_(grad)
    if weight_decay:
        buffer.add_(param, alpha=weight_decay)
    param.add_(buffer, alpha=-lr)


def lion_update(
    param: Tensor,  # (k,) fp32
    grad: Tensor,  # (k,) fp32
    moments: Sequence[Tensor],  # exp_avg, (k,) fp32
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One step: p <- (1 - lr weight_decay) p - lr sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g.

    Makes one temporary of k elements.
    """
    (exp_avg,) = moments
    direction = torch.lerp(exp_avg, grad, 1 - betas[0]).sign_()
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    param.add_(direction, alpha=-lr)
    exp_avg.lerp_(grad, 1 - betas[1])


class Blockwise8bit(PerParameterOptimizer):
    """Adam, AdamW, momentum or Lion (`method`) with block-wise 8-bit states."""

    def __init__(self, params: ParamsT, *, method: str, **hyper: Any) -> None:  # the methods' own arguments
        if method not in MOMENTS:
            raise ValueError(f"method is {method!r}; accepted: {', '.join(MOMENTS)}")
        known = DEFAULTS[method]
        for name in hyper:
            if name not in known:
                raise TypeError(f"{name} is no argument of {method}_8bit; accepted: {', '.join(known)}")
        defaults = dict(known) | hyper
        _check(defaults)
        self.method = method
        super().__init__(params, defaults)
        load_codebooks(self._all_params(), MOMENTS[method])

    def init_state(self, param: Tensor, group: Group) -> State:
        """Zeros: 8-bit codes and maxima, or fp32 for small tensors and stable embeddings."""
        quantised = is_quantised(
            param.numel(),
            min_8bit_size=group["min_8bit_size"],
            wants_8bit=not (wants_fp32_states(param) or _is_fp32_embedding(group.get("role"), group)),
        )
        shape = tuple(param.shape)
        return init_moments(shape, MOMENTS[self.method], quantised=quantised, device=param.device)

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """One update, chunk by chunk."""
        state["step"] += 1
        update = self._chunk_update(state["step"], group, param.device)
        moments = MOMENTS[self.method]
        update_in_chunks(param, grad, state, moments, update, chunk_size=group["chunk_size"])

    def _chunk_update(self, step: int, group: Group, device: torch.device) -> ChunkUpdate:
        common = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        if self.method == "sgdm":
            return partial(sgdm_update, is_first=step == 1, momentum=group["momentum"], **common)
        if self.method == "lion":
            return partial(lion_update, betas=group["betas"], **common)
        count = torch.full((), float(step), dtype=torch.float32, device=device)
        decouples = self.method == "adamw"
        return partial(
            adam_update, count=count, betas=group["betas"], eps=group["eps"], decouples=decouples, **common
        )


def _is_fp32_embedding(role: object, hyper: Mapping[str, Any]) -> bool:
    return role == Role.EMBEDDING and hyper["fp32_embeddings"]


def _check(hyper: Mapping[str, Any]) -> None:
    check_non_negative("lr", hyper["lr"])
    check_non_negative("weight_decay", hyper["weight_decay"])
    for number, beta in enumerate(hyper.get("betas", ())):
        check_fraction(f"betas[{number}]", beta)
    if "momentum" in hyper:
        check_fraction("momentum", hyper["momentum"])
    if "eps" in hyper:
        check_positive("eps", hyper["eps"])
    check_non_negative("min_8bit_size", hyper["min_8bit_size"])
    chunk_size = hyper["chunk_size"]
    if chunk_size < BLOCK_SIZE or chunk_size % BLOCK_SIZE:
        raise ValueError(f"chunk_size is {chunk_size}; accepted: a multiple of {BLOCK_SIZE}")


@dataclass(frozen=True, slots=True)
class Blockwise8bitDeclaration:
    """Bytes of a method of this family."""

    method: str

    def treatment(self, role: Role) -> str:
        """All parameters alike."""
        del role
        return f"8-bit {self.method}, fp32 below 4096 elements"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """2 e + 8 ceil(e / 256) bytes for Adam, e + 4 ceil(e / 256) for momentum and Lion; fp32 where not quantised."""
        return moment_states(
            parameter.shape, MOMENTS[self.method], quantised=self._quantises(parameter, hyper)
        )

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """The signed map, and for Adam the unsigned one, with the tables that find codes."""
        del hyper
        return shared_maps(MOMENTS[self.method])

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """fp32 copies of one chunk: moments, gradient and parameter, with what quantising needs."""
        del phase
        moments, chunk_size = MOMENTS[self.method], hyper["chunk_size"]
        quantised = self._quantises(parameter, hyper)
        held = sum(
            workspace_bytes(
                parameter.numel, parameter.dtype, len(moments), quantised=quantised, chunk_size=chunk_size
            )
        )
        if self.method == "lion":
            return held + 4 * largest_chunk(parameter.numel, quantised=quantised, chunk_size=chunk_size)
        return held if self.method == "sgdm" else held + STEP_COUNT_BYTES

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Nothing is refreshed."""
        del hyper
        return None

    def _quantises(self, parameter: Parameter, hyper: Hyper) -> bool:
        wants = not _is_fp32_embedding(parameter.role, hyper)
        return is_quantised(parameter.numel, min_8bit_size=hyper["min_8bit_size"], wants_8bit=wants)


_STATES = {"min_8bit_size": MIN_8BIT_SIZE, "fp32_embeddings": False, "chunk_size": CHUNK_SIZE}
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "adam": {**_ADAM, "weight_decay": 0.0, **_STATES},
    "adamw": {**_ADAM, "weight_decay": 1e-2, **_STATES},
    "sgdm": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, **_STATES},
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, **_STATES},
}


def _build(
    groups: Sequence[dict[str, Any]], hyper: Mapping[str, Any], *, method: str
) -> torch.optim.Optimizer:
    return Blockwise8bit(groups, method=method, **hyper)


def _entry(
    method: str, title: str, summary: str, *, differs: str = "", trainer: str | None = None
) -> OptimizerEntry:
    return OptimizerEntry(
        name=f"{method}_8bit",
        title=title,
        summary=summary,
        paper="Dettmers et al.: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
        licence="Apache-2.0",
        source="own",
        build=partial(_build, method=method),
        defaults=DEFAULTS[method],
        declaration=Blockwise8bitDeclaration(method),
        capabilities=Capabilities(),
        paper_differences=f"Blocks of 256 elements as in bitsandbytes 0.50; the paper has 2048. {differs}".strip(),
        trainer_name=trainer,
    )


ENTRIES = (
    _entry(
        "adam",
        "8-bit Adam",
        "Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
        differs="Weight decay is added to the gradient; bitsandbytes' Adam8bit decouples it.",
    ),
    _entry(
        "adamw",
        "8-bit AdamW",
        "Both moments in 8 bits, about 2 bytes per parameter whatever the parameters' dtype.",
        trainer="adamw_bnb_8bit",
    ),
    _entry("sgdm", "8-bit SGD with momentum", "Momentum in 8 bits, about 1 byte per parameter."),
    _entry(
        "lion", "8-bit Lion", "Lion's momentum in 8 bits, about 1 byte per parameter.", trainer="lion_8bit"
    ),
)
