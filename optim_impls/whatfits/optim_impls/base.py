"""What our optimizers share: the loop over parameters, checks of arguments, loading that keeps dtypes."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

__all__ = ["PerParameterOptimizer", "check_fraction", "check_non_negative", "check_positive"]

State = dict[str, Any]
Group = dict[str, Any]


def check_positive(name: str, value: float) -> None:
    """Raises ValueError naming the argument unless the value is above 0."""
    if not value > 0:
        raise ValueError(f"{name} is {value}; accepted: a number above 0")


def check_non_negative(name: str, value: float) -> None:
    """Raises ValueError naming the argument where the value is below 0."""
    if not value >= 0:
        raise ValueError(f"{name} is {value}; accepted: a number of at least 0")


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError naming the argument unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; accepted: a number of at least 0 and below 1")


class PerParameterOptimizer(torch.optim.Optimizer):
    """Updates one parameter after the other, so that a step holds temporaries of one parameter at a time.

    A method says how a parameter's state begins and how it is updated. State holds tensors and numbers only: it
    loads with ``torch.load(weights_only=True)``.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    @abstractmethod
    def init_state(self, param: Tensor, group: Group) -> State:
        """State of a parameter before its first update; never empty."""

    @abstractmethod
    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """Change the parameter and its state in place. Shapes: grad as param."""

    def begin_step(self) -> None:
        """What a method does before the first parameter of a step; nothing in general."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what the closure returns.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.begin_step()
        for group in self.param_groups:
            for param, grad, state in self.with_gradients(group):
                self.update_param(param, grad, state, group)
        return loss

    def with_gradients(self, group: Group) -> Iterator[tuple[Tensor, Tensor, State]]:
        """Each parameter that has a gradient, the gradient, and the state, which begins here.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        for param in group["params"]:
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients only")
            state = self.state[param]
            if not state:
                state.update(self.init_state(param, group))
            yield param, param.grad, state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, each tensor in the dtype it was saved in.

        torch casts state to the dtype of its parameter, which would lose fp32 moments of bf16 weights and 8-bit codes.
        """
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, param in zip(saved, self._all_params(), strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][key] = value.to(device=param.device, copy=True)

    def _all_params(self) -> Iterable[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)
