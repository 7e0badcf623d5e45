"""Methods of pytorch-optimizer that are well kept there: CAME, SOAP, LAMB, LOMO, AdaLomo, Adam-mini and others.

Two of its classes want a model; they get a stand-in that has the names and parameters of the groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whatfits.optim_impls.adapters.declared import LibraryDeclaration, fp32_scalar, like_parameter, no_state
from whatfits.optim_impls.adapters.library import load_library
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]

Groups = Sequence[dict[str, Any]]
_LICENCE = "Apache-2.0"
_EXTRA = "optimizers"
_LARGEST_SIDE = 10000
"""Side above which SOAP keeps no square for it."""
_PER_ELEMENT = ("embed", "embd", "wte", "lm_head.weight", "output.weight")
"""Names for which Adam-mini keeps a second moment per element."""


class NamedParameters:
    """What stands for a model: its names and parameters."""

    def __init__(self, groups: Groups) -> None:
        self._named = [pair for g in groups for pair in zip(g["param_names"], g["params"], strict=True)]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters in the order of the groups."""
        yield from self._named

    def parameters(self) -> Iterator[Tensor]:
        """The parameters alone."""
        yield from (parameter for _, parameter in self._named)


def _build(kind: str, groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = getattr(load_library("pytorch_optimizer", _EXTRA), kind)(
        list(groups), **hyper
    )
    return optimizer


def _adam_mini(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Adam-mini, which has to know the attention's heads.

    Raises:
        ValueError: `num_heads` or `hidden_size` is left out.
    """
    for key in ("num_heads", "hidden_size"):
        if hyper[key] is None:
            raise ValueError(
                f"{key} is None; accepted by adam_mini: the model's {key}, by which it splits q and k"
            )
    known = {key: value for key, value in hyper.items() if key != "hidden_size"}
    optimizer: torch.optim.Optimizer = load_library("pytorch_optimizer", _EXTRA).AdamMini(
        NamedParameters(groups), num_embeds=hyper["hidden_size"], **known
    )
    return optimizer


def _lomo(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """LOMO, with the learning rate read from the parameter group, so that a scheduler reaches it."""
    base: Any = load_library("pytorch_optimizer", _EXTRA).LOMO

    class Lomo(base):  # type: ignore[misc]
        lr = property(_group_lr, _keep_lr)

        def step(self, closure: Any = None) -> Any:
            """Nothing: the backward pass has updated."""
            return None if closure is None else closure()

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Nothing: gradients are freed as they are used."""

    optimizer: torch.optim.Optimizer = Lomo(NamedParameters(groups), **hyper)
    return optimizer


def _adalomo(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdaLomo: its hooks update every parameter but the last one the backward pass reaches; `step` updates that one."""
    base: Any = load_library("pytorch_optimizer", _EXTRA).AdaLOMO

    class AdaLomo(base):  # type: ignore[misc]
        lr = property(_group_lr, _keep_lr)

        def step(self, closure: Any = None) -> Any:
            """Update what the hooks left, and count."""
            loss = None if closure is None else closure()
            self.grad_func(None)
            self.num_steps += 1
            return loss

        def zero_grad(self, set_to_none: bool = True) -> None:
            """Nothing: gradients are freed as they are used."""

    optimizer: Any = AdaLomo(NamedParameters(groups), loss_scale=0.0, **hyper)
    optimizer.num_steps = 1
    return optimizer  # type: ignore[no-any-return]


def _group_lr(optimizer: Any) -> float:
    groups = getattr(optimizer, "param_groups", None)
    return groups[0]["lr"] if groups else optimizer.first_lr  # type: ignore[no-any-return]


def _keep_lr(optimizer: Any, lr: float) -> None:
    optimizer.first_lr = lr


def _came_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    shape, dtype = parameter.shape, parameter.dtype
    rms = StateTensor("RMS", (), dtype)
    if len(shape) < 2:
        return (*like_parameter("exp_avg", "exp_avg_sq")(parameter, hyper), rms)
    rows, columns = shape[:-1], (*shape[:-2], shape[-1])
    return (
        *like_parameter("exp_avg")(parameter, hyper),
        StateTensor("exp_avg_sq_row", rows, dtype),
        StateTensor("exp_avg_sq_col", columns, dtype),
        StateTensor("exp_avg_res_row", rows, dtype),
        StateTensor("exp_avg_res_col", columns, dtype),
        rms,
    )


def _lamb_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    """AdamW's moments, and the norms and the ratio of the last step."""
    numbers = (StateTensor(name, (), parameter.dtype) for name in ("weight_norm", "adam_norm", "trust_ratio"))
    return (*like_parameter("exp_avg", "exp_avg_sq")(parameter, hyper), *numbers)


def _soap_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    states = like_parameter("exp_avg", "exp_avg_sq")(parameter, hyper)
    if len(parameter.shape) < 2:
        return states
    squares = [side for side in parameter.shape if side <= hyper["max_precondition_dim"]]
    for number, side in enumerate(squares):
        states += (
            StateTensor(f"GG.{number}", (side, side), parameter.dtype),
            StateTensor(f"Q.{number}", (side, side), parameter.dtype),
        )
    return states


def _adalomo_states(parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    shape = parameter.shape
    if len(shape) < 2:
        return (StateTensor("exp_avg_sq", shape, torch.float32),)
    return (
        StateTensor("exp_avg_sq_row", shape[:1], torch.float32),
        StateTensor("exp_avg_sq_col", shape[1:], torch.float32),
    )


def _adam_mini_states(parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """Of parameters that are neither query nor key, which have one number per head instead of one."""
    momentum = StateTensor("m", parameter.shape, torch.float32)
    if parameter.role in (Role.EMBEDDING, Role.HEAD):
        return (momentum, StateTensor("v", parameter.shape, torch.float32))
    return (momentum, fp32_scalar("v_mean"), fp32_scalar("dimension"))


_IN_BACKWARD = Capabilities(
    whole_step=False,
    accumulates=False,
    clips=False,
    reasons={
        "whole_step": "Each parameter is updated inside the backward pass.",
        "accumulates": "Each gradient is freed inside the backward pass.",
        "clips": "Each gradient is freed before the norm of all is known.",
    },
)


def _entry(name: str, kind: str, title: str, summary: str, paper: str, **changes: Any) -> OptimizerEntry:
    return OptimizerEntry(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        licence=_LICENCE,
        source=f"pytorch_optimizer.{kind}",
        extra=_EXTRA,
        **{"build": partial(_build, kind), **changes},
    )


ENTRIES = (
    _entry(
        "came",
        "CAME",
        "CAME",
        "Adafactor with momentum and a confidence for it: one state per parameter, twice that in the step.",
        "Luo et al.: CAME: Confidence-guided Adaptive Memory Efficient Optimization, arXiv:2307.02047",
        defaults={"lr": 2e-4, "betas": (0.9, 0.999, 0.9999), "weight_decay": 0.0, "clip_threshold": 1.0},
        declaration=LibraryDeclaration(rule=_came_states, treats="momentum, factored second moment"),
    ),
    _entry(
        "soap",
        "SOAP",
        "SOAP",
        "AdamW's moments and two squares for each side of a matrix: more memory, fewer steps.",
        "Vyas et al.: SOAP: Improving and Stabilizing Shampoo using Adam, arXiv:2409.11321",
        defaults={
            "lr": 3e-3,
            "betas": (0.95, 0.95),
            "eps": 1e-8,
            "weight_decay": 1e-2,
            "precondition_frequency": 10,
            "max_precondition_dim": _LARGEST_SIDE,
        },
        declaration=LibraryDeclaration(
            rule=_soap_states,
            treats="adamw in the basis of Shampoo",
            treatments={Role.VECTOR: "adamw"},
            interval=lambda hyper: hyper["precondition_frequency"],
        ),
    ),
    _entry(
        "lamb",
        "Lamb",
        "LAMB",
        "AdamW's states with a trust ratio per tensor, for very large batches.",
        "You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, arXiv:1904.00962",
        defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0},
        declaration=LibraryDeclaration(rule=_lamb_states, treats="lamb"),
    ),
    _entry(
        "ademamix",
        "AdEMAMix",
        "AdEMAMix",
        "AdamW with a second, slow momentum: three states per parameter, for fewer steps.",
        "Pagliardini et al.: The AdEMAMix Optimizer: Better, Faster, Older, arXiv:2409.03137",
        defaults={"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "eps": 1e-8, "weight_decay": 0.0},
        declaration=LibraryDeclaration(
            rule=like_parameter("exp_avg", "exp_avg_sq", "exp_avg_slow"), treats="ademamix"
        ),
    ),
    _entry(
        "stable_adamw",
        "StableAdamW",
        "StableAdamW",
        "AdamW whose learning rate falls where an update would be large; AdamW's states.",
        "Wortsman et al.: Stable and low-precision training for large-scale vision-language models, arXiv:2304.13013",
        defaults={"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 1e-2, "kahan_sum": False},
        declaration=LibraryDeclaration(rule=like_parameter("exp_avg", "exp_avg_sq"), treats="stable adamw"),
        trainer_name="stable_adamw",
    ),
    _entry(
        "adabelief",
        "AdaBelief",
        "AdaBelief",
        "Adam by the surprise in gradients instead of their size; AdamW's states.",
        "Zhuang et al.: AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, arXiv:2010.07468",
        defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.0},
        declaration=LibraryDeclaration(rule=like_parameter("exp_avg", "exp_avg_var"), treats="adabelief"),
    ),
    _entry(
        "tiger",
        "Tiger",
        "Tiger",
        "Lion with one interpolation factor: one state per parameter, half of AdamW's.",
        "Jianlin Su: Tiger, a tight-fisted optimizer, https://github.com/bojone/tiger",
        defaults={"lr": 1e-3, "beta": 0.965, "weight_decay": 0.01},
        declaration=LibraryDeclaration(rule=like_parameter("exp_avg"), treats="sign of a momentum"),
    ),
    _entry(
        "adam_mini",
        "AdamMini",
        "Adam-mini",
        "A momentum per element in fp32, and second moments per head or matrix instead of per element.",
        "Zhang et al.: Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793",
        build=_adam_mini,
        defaults={
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.1,
            "hidden_size": None,
            "num_heads": None,
            "num_query_groups": None,
            "foreach": None,
        },
        declaration=LibraryDeclaration(rule=_adam_mini_states, treats="a second moment per block"),
        capabilities=Capabilities(
            layerwise=False, reasons={"layerwise": "Lists of parameters are updated in one step."}
        ),
        paper_differences="Per-element second moments for embeddings and head; one per matrix for values, attention "
        "outputs and feed-forward layers, where the paper has one per output row.",
    ),
    _entry(
        "lomo",
        "LOMO",
        "LOMO",
        "SGD fused into the backward pass: no state, and never more than one gradient.",
        "Lv et al.: Full Parameter Fine-tuning for Large Language Models with Limited Resources, arXiv:2306.09782",
        build=_lomo,
        defaults={"lr": 1e-3},
        declaration=LibraryDeclaration(rule=no_state, treats="sgd"),
        trainer_name="lomo",
        capabilities=_IN_BACKWARD,
    ),
    _entry(
        "adalomo",
        "AdaLOMO",
        "AdaLomo",
        "Adafactor fused into the backward pass: row and column means, never more than one gradient.",
        "Lv et al.: AdaLomo: Low-memory Optimization with Adaptive Learning Rate, arXiv:2310.10195",
        build=_adalomo,
        defaults={"lr": 1e-3, "weight_decay": 0.0, "clip_threshold": 1.0, "decay_rate": -0.8},
        declaration=LibraryDeclaration(rule=_adalomo_states, treats="factored second moment"),
        trainer_name="adalomo",
        capabilities=_IN_BACKWARD,
    ),
)
