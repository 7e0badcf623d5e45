"""MeZO trains with two forward passes and no gradients: memory of inference, no state but a seed and a step number.

Sadhika Malladi, Tianyu Gao, Eshaan Nichani, Alex Damian, Jason D. Lee, Danqi Chen, Sanjeev Arora: Fine-Tuning Language
Models with Just Forward Passes, arXiv:2305.17333, Algorithm 1. z is drawn again from its seed for every sweep over the
parameters, and added in place.

Differs from the paper: it moves back from -eps z and then steps, two sweeps; here both are one, three sweeps in all.
Weight decay is decoupled. z is drawn piece by piece, so that temporaries are one piece, not one parameter.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from whatfits.optim_impls.base import check_non_negative, check_positive
from whatfits.optim_impls.chunks import CHUNK, chunks, scratch_for
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.projection import seeded_generator

__all__ = ["ENTRY", "MeZO", "add_noise"]

SEEDS = 2**63


def add_noise(param: Tensor, generator: torch.Generator | None, *, scale: float) -> None:
    """In place, p <- p + scale z with z ~ N(0, 1) in the parameter's dtype; the draws depend on the generator alone."""
    scratch = scratch_for(param)
    for (piece,) in chunks(param):
        noise = scratch[: piece.numel()].view(piece.shape)
        piece.add_(noise.normal_(generator=generator), alpha=scale)


class MeZO(torch.optim.Optimizer):
    """Zeroth-order SGD along one random direction per step; every parameter that requires gradients takes part.

    `step` needs a closure that returns the loss and computes no gradients. Model and data must be the same in both
    calls: no dropout, or one with a fixed seed.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-6, eps: float = 1e-3, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        check_non_negative("lr", lr)
        check_positive("eps", eps)
        check_non_negative("weight_decay", weight_decay)
        if seed not in range(2**32):
            raise ValueError(f"seed is {seed}; accepted: a whole number from 0 to {2**32 - 1}")
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": seed, "step": 0}
        super().__init__(params, defaults)
        self.projected_grad = 0.0
        """(L(p + eps z) - L(p - eps z)) / (2 eps) of the last step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns the loss at p + eps z, as the paper's code does.

        Raises:
            RuntimeError: there is no closure.
        """
        if closure is None:
            raise RuntimeError("MeZO.step needs a closure that returns the loss: the method has no gradients")
        eps = self.param_groups[0]["eps"]
        self._sweep(lambda group: group["eps"])
        loss = closure()
        self._sweep(lambda group: -2 * group["eps"])
        self.projected_grad = float((loss - closure()) / (2 * eps))
        self._sweep(lambda group: group["eps"] - group["lr"] * self.projected_grad, decays=True)
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def _sweep(self, scale: Callable[[dict[str, Any]], float], *, decays: bool = False) -> None:
        """Add a multiple of this step's z to every parameter."""
        generators: dict[torch.device, torch.Generator | None] = {}
        for group in self.param_groups:
            for param in group["params"]:
                if not param.requires_grad:
                    continue
                if param.device not in generators:
                    found = seeded_generator(group["seed"], 0, group["step"], param.device)
                    generators[param.device] = found
                add_noise(param, generators[param.device], scale=scale(group))
                if decays and group["weight_decay"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"])


class _Declaration:
    """No state; one piece of noise."""

    def treatment(self, role: Role) -> str:  # noqa: ARG002 (the same for every role)
        return "mezo"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:  # noqa: ARG002
        """Noise of one piece; what the closure's forward passes hold is not the optimizer's."""
        return min(parameter.numel, CHUNK) * parameter.dtype.itemsize

    def refresh_interval(self, hyper: Hyper) -> int | None:  # noqa: ARG002
        return None


_DEFAULTS: dict[str, Any] = {"lr": 1e-6, "eps": 1e-3, "weight_decay": 0.0, "seed": 0}

ENTRY = OptimizerEntry(
    name="mezo",
    title="MeZO",
    summary="Two forward passes in place of gradients: no state, no gradients, no stored activations.",
    paper="Malladi et al.: Fine-Tuning Language Models with Just Forward Passes, arXiv:2305.17333",
    licence="Apache-2.0",
    source="own",
    build=lambda groups, hyper: MeZO(groups, **hyper),
    defaults=_DEFAULTS,
    declaration=_Declaration(),
    capabilities=Capabilities(
        layerwise=False,
        accumulates=False,
        clips=False,
        reasons={
            "layerwise": "There are no gradients, whose arrival could trigger an update.",
            "accumulates": "There are no gradients to sum; average the losses of several batches inside the closure.",
            "clips": "There are no gradients to clip.",
        },
    ),
    paper_differences="The step back from -eps z and the update are one sweep over the parameters.",
)
