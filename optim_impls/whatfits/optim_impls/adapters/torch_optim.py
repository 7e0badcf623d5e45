"""SGD, AdamW, Adafactor and Muon of torch itself, `torch.optim`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from whatfits.optim_impls.adapters.declared import LibraryDeclaration, fp32_scalar, like_parameter, no_state
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry

__all__ = ["ENTRIES"]

Groups = Sequence[dict[str, Any]]
_ELEMENTWISE = Capabilities(shards=frozenset({"ddp", "fsdp2"}))
_IMPLEMENTATIONS = ("for_loop", "foreach", "fused")


def _walk(implementation: str) -> dict[str, bool]:
    """The two switches by which torch walks over the parameters.

    Raises:
        ValueError: an unknown word.
    """
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"implementation is {implementation!r}; accepted: {', '.join(_IMPLEMENTATIONS)}")
    return {"foreach": implementation == "foreach", "fused": implementation == "fused"}


def _torch_hyper(hyper: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in hyper.items() if key != "implementation"}
    return {**known, **_walk(hyper["implementation"])}


def _sgd(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(groups), **_torch_hyper(hyper))


def _adamw(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(groups), **_torch_hyper(hyper))


def _adafactor(groups: Groups, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(list(groups), **hyper)


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for the matrices and `torch.optim.AdamW` for all else, as one optimizer.

    Two groups, the matrices and all else, so that a learning-rate scheduler reaches both.
    """

    def __init__(self, groups: Groups, hyper: Mapping[str, Any]) -> None:
        shared = {key: hyper[key] for key in ("lr", "weight_decay")}
        muon = {key: hyper[key] for key in ("momentum", "nesterov", "ns_steps", "adjust_lr_fn")}
        matrices = [dict(group) for group in groups if group["role"] == Role.MATRIX]
        others = _as_one([group for group in groups if group["role"] != Role.MATRIX])
        self._inner: list[torch.optim.Optimizer] = []
        if matrices:
            self._inner.append(torch.optim.Muon(matrices, **shared, **muon))
        if others:
            self._inner.append(
                torch.optim.AdamW(others, **shared, betas=hyper["betas"], eps=hyper["eps"], foreach=True)
            )
        super().__init__([{"params": group["params"]} for group in (*matrices, *others)], {})
        self._take_over()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Both, one after the other; the closure is called once, first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self._inner:
            inner.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for inner in self._inner:
            inner.param_groups = [next(groups) for _ in inner.param_groups]
            inner.state = self.state

    def _take_over(self) -> None:
        self.param_groups = [group for inner in self._inner for group in inner.param_groups]
        for inner in self._inner:
            inner.state = self.state


def _as_one(groups: Groups) -> list[dict[str, Any]]:
    """Groups that are treated alike as one: what AdamW's foreach form holds is of a group at a time."""
    if not groups:
        return []
    joined = {
        key: [item for group in groups for item in group.get(key, ())] for key in ("params", "param_names")
    }
    return [{**groups[0], **{key: items for key, items in joined.items() if items}}]


def _sgdm_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    return like_parameter("momentum_buffer")(parameter, hyper) if hyper["momentum"] else ()


def _adamw_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    return (fp32_scalar("step"), *like_parameter("exp_avg", "exp_avg_sq")(parameter, hyper))


def _adafactor_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    shape, dtype = parameter.shape, parameter.dtype
    if len(shape) < 2:
        return (fp32_scalar("step"), *like_parameter("variance")(parameter, hyper))
    return (
        fp32_scalar("step"),
        StateTensor("row_var", (*shape[:-1], 1), dtype),
        StateTensor("col_var", (*shape[:-2], 1, shape[-1]), dtype),
    )


def _muon_states(parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
    if parameter.role is Role.MATRIX:
        return like_parameter("momentum_buffer")(parameter, hyper)
    return _adamw_states(parameter, hyper)


_ADAMW_DEFAULTS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

ENTRIES = (
    OptimizerEntry(
        name="sgd",
        title="SGD",
        summary="No state at all; rarely trains transformers well.",
        paper="Robbins and Monro: A Stochastic Approximation Method, 1951",
        licence="BSD-3-Clause",
        source="torch.optim.SGD",
        build=_sgd,
        defaults={"lr": 1e-3, "weight_decay": 0.0, "implementation": "foreach"},
        declaration=LibraryDeclaration(rule=no_state, treats="sgd"),
        trainer_name="sgd",
        capabilities=_ELEMENTWISE,
    ),
    OptimizerEntry(
        name="sgdm",
        title="SGD with momentum",
        summary="One momentum per parameter in the parameters' dtype, half of AdamW's states.",
        paper="Polyak: Some methods of speeding up the convergence of iteration methods, 1964",
        licence="BSD-3-Clause",
        source="torch.optim.SGD",
        build=_sgd,
        defaults={
            "lr": 1e-3,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "nesterov": False,
            "implementation": "foreach",
        },
        declaration=LibraryDeclaration(rule=_sgdm_states, treats="sgd with momentum"),
        capabilities=_ELEMENTWISE,
    ),
    OptimizerEntry(
        name="adamw",
        title="AdamW",
        summary="Two moments per parameter in the parameters' dtype; the reference the others are compared with.",
        paper="Loshchilov and Hutter: Decoupled Weight Decay Regularization, arXiv:1711.05101",
        licence="BSD-3-Clause",
        source="torch.optim.AdamW",
        build=_adamw,
        defaults={**_ADAMW_DEFAULTS, "implementation": "foreach"},
        declaration=LibraryDeclaration(rule=_adamw_states, treats="adamw"),
        trainer_name="adamw_torch",
        capabilities=_ELEMENTWISE,
    ),
    OptimizerEntry(
        name="adafactor",
        title="Adafactor",
        summary="Row and column means in place of the second moment, no momentum: almost no state for matrices.",
        paper="Shazeer and Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235",
        licence="BSD-3-Clause",
        source="torch.optim.Adafactor",
        build=_adafactor,
        defaults={"lr": 1e-2, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.0},
        declaration=LibraryDeclaration(rule=_adafactor_states, treats="factored second moment"),
    ),
    OptimizerEntry(
        name="muon",
        title="Muon",
        summary="One momentum for linear layers, whose update is made orthogonal; AdamW for all other parameters.",
        paper="Jordan et al.: Muon: An optimizer for hidden layers in neural networks, "
        "https://kellerjordan.github.io/posts/muon/",
        licence="BSD-3-Clause",
        source="torch.optim.Muon and torch.optim.AdamW",
        build=MuonWithAdamW,
        defaults={
            "lr": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.95,
            "nesterov": True,
            "ns_steps": 5,
            "adjust_lr_fn": "match_rms_adamw",
            "betas": (0.9, 0.95),
            "eps": 1e-8,
        },
        declaration=LibraryDeclaration(
            rule=_muon_states, treatments={Role.MATRIX: "orthogonal momentum"}, treats="adamw"
        ),
        paper_differences="The scale of the update is that of AdamW's (match_rms_adamw), so that one lr serves both; "
        "the post's own is adjust_lr_fn='original'.",
    ),
)
