"""Layer-wise updates: each parameter is updated as soon as the backward pass has its gradient, which is freed at once.

Never more than one gradient is held. Kai Lv et al., arXiv:2306.09782 (LOMO), section 3.1; here by torch's
post-accumulate-grad hooks, for any method that updates a parameter by its own gradient alone.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

__all__ = ["LayerwiseOptimizer"]

BuildOne = Callable[[dict[str, Any]], torch.optim.Optimizer]


class LayerwiseOptimizer(torch.optim.Optimizer):
    """One optimizer per parameter, stepped inside ``backward()``; `step` and `zero_grad` do nothing.

    Each parameter is a group of its own. The groups are those of the optimizers within, so that a learning-rate
    scheduler reaches them. The hooks hold the optimizer weakly: drop it, or call `remove_hooks`, and they are gone.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], build_one: BuildOne) -> None:
        """Build an optimizer for every parameter and hang it into the backward pass.

        Args:
            groups: Parameter groups with `params` and `role`.
            build_one: Makes the optimizer of a group of one parameter. The group's key `first_number` is the
                parameter's position among all, from which methods with a seed draw.
        """
        singles = [single for group in groups for single in _singles(group)]
        for number, single in enumerate(singles):
            single["first_number"] = number
        self._inner = [build_one(single) for single in singles]
        super().__init__([{"params": single["params"]} for single in singles], {})
        self.param_groups = [inner.param_groups[0] for inner in self._inner]
        self._handles = [
            single["params"][0].register_post_accumulate_grad_hook(_hook(weakref.ref(self), number))
            for number, single in enumerate(singles)
        ]
        weakref.finalize(self, _remove, self._handles)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing is left to do; a closure is called, for its backward pass, and its loss returned."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: gradients are freed as they are used."""

    def state_dict(self) -> dict[str, Any]:
        """State and groups of all, numbered as `param_groups` are; tensors and numbers only where the method's are."""
        saved: dict[str, Any] = {"state": {}, "param_groups": []}
        for number, inner in enumerate(self._inner):
            one = inner.state_dict()
            if 0 in one["state"]:
                saved["state"][number] = one["state"][0]
            saved["param_groups"].append({**one["param_groups"][0], "params": [number]})
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; each optimizer loads its own part in its own way.

        Raises:
            ValueError: it is of another number of parameters.
        """
        groups = state_dict["param_groups"]
        if len(groups) != len(self._inner):
            raise ValueError(f"state_dict has {len(groups)} parameter groups; accepted: {len(self._inner)}")
        for number, (inner, group) in enumerate(zip(self._inner, groups, strict=True)):
            states = {0: state_dict["state"][number]} if number in state_dict["state"] else {}
            inner.load_state_dict({"state": states, "param_groups": [{**group, "params": [0]}]})
        self.param_groups = [inner.param_groups[0] for inner in self._inner]
        self.state = defaultdict(dict)
        for inner in self._inner:
            self.state.update(inner.state)

    def remove_hooks(self) -> None:
        """Take the updates out of the backward pass again; gradients stay where they are from then on."""
        _remove(self._handles)

    def update(self, number: int, param: Tensor) -> None:
        """Step the optimizer of one parameter and free its gradient; the hooks call it."""
        inner = self._inner[number]
        inner.step()
        param.grad = None
        self.state.update(inner.state)


def _singles(group: dict[str, Any]) -> list[dict[str, Any]]:
    names = group.get("param_names", [""] * len(group["params"]))
    return [
        {**group, "params": [param], "param_names": [name]}
        for param, name in zip(group["params"], names, strict=True)
    ]


def _hook(optimizer: "weakref.ref[LayerwiseOptimizer]", number: int) -> Callable[[Tensor], None]:
    """A parameter's hook, which keeps neither the optimizer nor, through it, the model alive."""

    def update(param: Tensor) -> None:
        alive = optimizer()
        if alive is not None:
            alive.update(number, param)

    return update


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
