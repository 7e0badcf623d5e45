"""FRUGAL keeps AdamW's state for a part of every matrix, or for some matrices at a time, and signs for the rest.

Philip Zmushko, Aleksandr Beznosikov, Martin Takac, Samuel Horvath: FRUGAL: Memory-Efficient Optimization by Reducing
State Overhead for Scalable Training, arXiv:2411.07837, Algorithm 1. Every `projection_update_interval` steps the part
changes and its state begins anew. Parameters that are no matrices get AdamW.

Differs from the paper: nothing. The authors' code (fzmushko/FRUGAL) keeps two 8-byte numbers per chosen element, here
one of 4 bytes; its block order is `random` in the README and `descending` in the scripts, which is the default here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.adamw import init_adamw_state, step_adamw
from whatfits.optim_impls.base import (
    Group,
    PerParameterOptimizer,
    State,
    check_fraction,
    check_non_negative,
    check_positive,
)
from whatfits.optim_impls.chunks import chunks, scratch_for
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.frugal_split import (
    SPLITS,
    STATE_FREE,
    choose_part,
    state_free_update,
    update_columns,
    update_elements,
    update_projected,
)
from whatfits.optim_impls.projection import seeded_generator

__all__ = ["ORDERS", "Frugal", "active_numbers"]

ORDERS = ("descending", "ascending", "random")
MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES: dict[str, Callable[..., None]] = {
    "columns": update_columns,
    "elements": update_elements,
    "random": update_projected,
    "svd": update_projected,
}


def active_numbers(count: int, *, density: float, order: str, turn: int, seed: int) -> list[int]:
    """Which of `count` matrices have state in a turn, counted from 0: round(count density) of them, in order."""
    size = round(count * density)
    if order == "random":
        generator = seeded_generator(seed, 0, turn, torch.device("cpu"))
        return torch.randperm(count, generator=generator)[:size].tolist()
    numbers = range(turn * size, (turn + 1) * size)
    return [number % count if order == "ascending" else (count - 1 - number) % count for number in numbers]


class Frugal(PerParameterOptimizer):
    """FRUGAL with AdamW as the state-full and the sign of the gradient as the state-free rule."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        split: str = "block",
        density: float = 0.25,
        projection_update_interval: int = 200,
        state_free: str = "sign",
        state_free_scale: float = 1.0,
        block_order: str = "descending",
        seed: int = 0,
    ) -> None:
        check_non_negative("lr", lr)
        check_positive("eps", eps)
        check_non_negative("weight_decay", weight_decay)
        check_non_negative("state_free_scale", state_free_scale)
        for number, beta in enumerate(betas):
            check_fraction(f"betas[{number}]", beta)
        if not 0 <= density <= 1:
            raise ValueError(f"density is {density}; accepted: a number from 0 to 1")
        if projection_update_interval < 1:
            value = projection_update_interval
            raise ValueError(f"projection_update_interval is {value}; accepted: a whole number above 0")
        if seed not in range(2**31):
            raise ValueError(f"seed is {seed}; accepted: a whole number from 0 to {2**31 - 1}")
        named = (
            ("split", split, SPLITS),
            ("state_free", state_free, STATE_FREE),
            ("block_order", block_order, ORDERS),
        )
        for name, choice, accepted in named:
            if choice not in accepted:
                raise ValueError(f"{name} is {choice!r}; accepted: {', '.join(accepted)}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "split": split,
            "density": density,
            "projection_update_interval": projection_update_interval,
            "state_free": state_free,
            "state_free_scale": state_free_scale,
            "block_order": block_order,
            "seed": seed,
            "turn": 0,
            "steps_of_turn": 0,
        }
        super().__init__(params, defaults)

    def begin_step(self) -> None:
        """Whole matrices take turns, where that is the split."""
        for group in self.param_groups:
            if group.get("role", Role.MATRIX) == Role.MATRIX and group["split"] == "block":
                self._take_turns(group)

    def init_state(self, param: Tensor, group: Group) -> State:
        """AdamW's moments; for a matrix what its split makes at its first refresh."""
        if not _is_split(param.ndim, group):
            return init_adamw_state(param)
        number = next(index for index, other in enumerate(self._all_params()) if other is param)
        return {"step": 0, "turn": 0, "number": number + group.get("first_number", 0)}

    def update_param(self, param: Tensor, grad: Tensor, state: State, group: Group) -> None:
        """AdamW, or both rules on the two parts of a matrix."""
        full = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        if _is_split(param.ndim, group) and group["split"] != "block":
            self._choose(grad, state, group)
            state["step"] += 1
            free = _state_free(group)
            UPDATES[group["split"]](param, grad, state, free=free, full=full)
            return
        state["step"] += 1
        if "exp_avg" in state:
            step_adamw(param, grad, state, group)
            return
        scratch = scratch_for(param) if group["state_free"] == "sign" else None
        for piece, piece_grad in chunks(param, grad):
            sign = None if scratch is None else scratch[: piece.numel()].view(piece.shape)
            state_free_update(piece, piece_grad, sign, **_state_free(group))

    def _choose(self, grad: Tensor, state: State, group: Group) -> None:
        """Choose a new part when its turn is over; its moments begin at 0."""
        if state["step"] % group["projection_update_interval"]:
            return
        generator = seeded_generator(group["seed"], state["number"], state["turn"], grad.device)
        for name in ("indices", "projection"):
            state.pop(name, None)
        chosen = choose_part(grad, group["split"], group["density"], generator)
        state.update(chosen)
        state["step"] = 0
        state["turn"] += 1
        if "exp_avg" in state:
            for moment in MOMENTS:
                state[moment].zero_()
            return
        shape = _moment_shape(grad, chosen)
        for moment in MOMENTS:
            state[moment] = grad.new_zeros(shape)

    def _take_turns(self, group: Group) -> None:
        """Take the moments from all matrices of a group and give some to those whose turn it is."""
        matrices = [param for param in group["params"] if param.ndim == 2]
        if group["steps_of_turn"] % group["projection_update_interval"] == 0:
            for param in matrices:
                state = self.state[param]
                for moment in MOMENTS:
                    state.pop(moment, None)
                state["step"] = 0
            numbers = active_numbers(
                len(matrices),
                density=group["density"],
                order=group["block_order"],
                turn=group["turn"],
                seed=group["seed"],
            )
            for number in numbers:
                self.state[matrices[number]].update(init_adamw_state(matrices[number]))
            group["turn"] += 1
            group["steps_of_turn"] = 0
        group["steps_of_turn"] += 1


def _state_free(group: Group) -> dict[str, Any]:
    return {
        "lr": group["lr"] * group["state_free_scale"],
        "rule": group["state_free"],
        "weight_decay": group["weight_decay"],
        "decay_lr": group["lr"],
    }


def _is_split(num_dims: int, group: Group) -> bool:
    return num_dims == 2 and group.get("role", Role.MATRIX) == Role.MATRIX


def _moment_shape(grad: Tensor, chosen: dict[str, Tensor]) -> tuple[int, ...]:
    rows, columns = grad.shape
    if "projection" in chosen:
        projection = chosen["projection"]
        return (rows, projection.shape[0]) if rows >= columns else (projection.shape[1], columns)
    count = len(chosen["indices"])
    return (rows, count) if count <= columns and chosen["indices"].dtype == torch.int64 else (count,)
