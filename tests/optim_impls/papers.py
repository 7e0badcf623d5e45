"""Methods without a public implementation that runs here, as optimizers written from the papers with full tensors.

Every group of role `matrix` gets the method; the others get torch's AdamW.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from tests.optim_impls.low_rank_checks import adam, bias, leading_directions, limited, orient
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.projection import seeded_generator

__all__ = ["Adan", "Apollo", "Frugal", "Gwt", "LDAdam", "MeZO", "Sophia", "SubTrack"]

BETAS = (0.9, 0.999)


class Paper(torch.optim.Optimizer):
    """Steps of a method that says what a matrix with its longer side first becomes."""

    whole_model = False
    """Whether the method takes every parameter, as it lies."""

    def __init__(self, params: Any, **hyper: Any) -> None:
        super().__init__(params, {"betas": BETAS, "eps": 1e-8, **hyper})
        others = [g["params"] for g in self.param_groups if not self._takes(g)]
        self._adamw = (
            torch.optim.AdamW(
                [p for group in others for p in group],
                lr=hyper["lr"],
                betas=hyper.get("betas", BETAS),
                weight_decay=0.0,
            )
            if others
            else None
        )
        self._generator = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        if self._adamw:
            self._adamw.step()
        for group in self.param_groups:
            if not self._takes(group):
                continue
            for param in group["params"]:
                state = self.state[param]
                state["step"] = state.get("step", 0) + 1
                param.sub_(group["lr"] * self._update(param.grad, state, group))
        return closure

    def _takes(self, group: dict[str, Any]) -> bool:
        return self.whole_model or group["role"] == Role.MATRIX

    def _update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if self.whole_model:
            return self.direction(grad, state, group)
        turned = self.direction(orient(grad), state, group)
        return turned if grad.shape[0] >= grad.shape[1] else turned.T

    @abstractmethod
    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """What the step size multiplies."""


class Adan(Paper):
    """arXiv:2208.06677, Algorithm 1, in its own betas."""

    whole_model = True

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """m + (1 - b2) v over sqrt(n)."""
        del group
        b1, b2, b3 = 0.02, 0.08, 0.01
        last = state.get("grad", grad)
        difference = grad - last
        squared = (grad + (1 - b2) * difference) ** 2
        m = grad if state["step"] == 1 else (1 - b1) * state["m"] + b1 * grad
        v = b2 * difference + (1 - b2) * state.get("v", torch.zeros_like(grad))
        n = grad**2 if state["step"] == 1 else (1 - b3) * state["n"] + b3 * squared
        state.update(m=m, v=v, n=n, grad=grad.clone())
        update: Tensor = (m + (1 - b2) * v) / (n.sqrt() + 1e-8)
        return update


class Sophia(Paper):
    """arXiv:2305.14342, Algorithms 2 and 3: the estimate has the batch size in it."""

    whole_model = True

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """m over gamma h, clipped to 1."""
        state["m"] = 0.965 * state.get("m", 0.0) + 0.035 * grad
        h = state.get("h", torch.zeros_like(grad))
        update: Tensor = (state["m"] / (group["gamma"] * h).clamp(min=1e-12)).clamp(-1, 1)
        return update

    @torch.no_grad()
    def update_hessian(self) -> None:
        """From the gradients of sampled labels."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["h"] = 0.99 * state.get("h", 0.0) + 0.01 * group["batch_size"] * param.grad**2


class Apollo(Paper):
    """arXiv:2412.05270, Algorithm 1: the gradient scaled by norms of AdamW's update in a random space."""

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Channels' factors, or one for the matrix where `dim` is None."""
        step, betas, dim = state["step"], group["betas"], group["dim"]
        if (step - 1) % group["interval"] == 0:
            p = torch.randn(group["rank"], grad.shape[1], generator=self._generator)
            state["p"] = p / group["rank"] ** 0.5
        low = grad @ state["p"].T
        moved = adam(low, state, step, betas, group["eps"])
        factors = moved.norm(dim=dim, keepdim=True) / low.norm(dim=dim, keepdim=True).clamp(min=1e-12)
        update: Tensor = group["scale"] ** 0.5 * limited(factors * grad, state, bias(step, betas))
        return update


def carried(state: dict[str, Any], p: Tensor, seen: int, betas: tuple[float, float]) -> None:
    """Both moments of the old subspace, in the new one."""
    change = state["p"] @ p.T
    m, v = state["m"] / (1 - betas[0] ** seen), state["v"] / (1 - betas[1] ** seen)
    v = ((v - m**2) @ change**2 + (m @ change) ** 2).abs()
    state.update(m=state["m"] @ change, v=v * (1 - betas[1] ** seen), p=p)


class LDAdam(Paper):
    """arXiv:2410.16103, Algorithm 1."""

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The subspace follows momentum and gradient; what is dropped comes back."""
        step, betas, rho = state["step"], group["betas"], group["rho"]
        seen, total, lost = step - 1, grad + state.get("error", 0.0), torch.zeros(())
        if seen:
            old, m = state["p"], state["m"]
            b = rho * m / (1 - betas[0] ** seen) @ old + (1 - rho) * total
            p = torch.linalg.qr(b.T @ (b @ old.T))[0].T
            carried(state, p, seen, betas)
            lost = betas[0] / (1 - betas[0]) * (m @ old - state["m"] @ p)
        else:
            state["p"] = leading_directions(grad, group["rank"]).float()
        low = total @ state["p"].T
        state["error"] = total - low @ state["p"] + lost
        update: Tensor = adam(low, state, step, betas, group["eps"]) @ state["p"]
        return update


class SubTrack(Paper):
    """arXiv:2502.01586, Algorithm 1."""

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The subspace turns along the Grassmannian; the rest of the gradient is scaled as its rows are."""
        step, betas = state["step"], group["betas"]
        if step == 1:
            state["p"] = leading_directions(grad, group["rank"]).float()
        elif (step - 1) % group["interval"] == 0:
            carried(state, turned(grad, state["p"], group["step_size"]), step - 1, betas)
        low = grad @ state["p"].T
        moved = adam(low, state, step, betas, group["eps"])
        factors = moved.norm(dim=1, keepdim=True) / low.norm(dim=1, keepdim=True).clamp(min=1e-12)
        rest = limited(factors * (grad - low @ state["p"]), state, bias(step, betas))
        update: Tensor = group["scale"] * (moved @ state["p"] + rest)
        return update


def turned(grad: Tensor, p: Tensor, step_size: float) -> Tensor:
    """The geodesic of S = P^T towards the gradient: S' = [S v, u] [cos; sin] v^T + S (1 - v v^T)."""
    s, g = p.T, grad.T
    a = s.T @ g
    u, sigma, vh = torch.linalg.svd(2 * (g - s @ a) @ a.T, full_matrices=False)
    u, v, angle = u[:, :1], vh[:1].T, sigma[0] * step_size
    new: Tensor = (s @ v @ v.T * angle.cos() + u @ v.T * angle.sin() + s - s @ v @ v.T).T
    return new


class Gwt(Paper):
    """arXiv:2501.07237, Algorithm 1, by an explicit Haar transform of the rows, which have whole blocks here."""

    def _update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return self.direction(grad, state, group)

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Adam of the coarse coefficients; its denominators divide the details too."""
        coarse, betas, step = grad, group["betas"], state["step"]
        details: list[Tensor] = []
        for _ in range(group["level"]):
            even, odd = coarse[:, ::2], coarse[:, 1::2]
            coarse = (even + odd) / 2**0.5
            details.insert(0, (even - odd) / 2**0.5)
        zero = torch.zeros_like(coarse)
        m = betas[0] * state.get("m", zero) + (1 - betas[0]) * coarse
        v = betas[1] * state.get("v", zero) + (1 - betas[1]) * coarse**2
        state.update(m=m, v=v)
        denominator = v.sqrt() + group["eps"]
        signal = m / denominator
        for detail in details:
            rest = detail / denominator
            signal = torch.stack([signal + rest, signal - rest], -1).flatten(1) / 2**0.5
            denominator = denominator.repeat_interleave(2, 1)
        update: Tensor = group["scale"] * bias(step, betas) * signal
        return update


class Frugal(Paper):
    """arXiv:2411.07837, Algorithm 1: Adam for a part that changes, begun anew each time, and signs for the rest."""

    def _update(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        is_projected = group["split"] in ("random", "svd")
        return super()._update(grad, state, group) if is_projected else self.direction(grad, state, group)

    def direction(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Of both parts."""
        turn, since = divmod(state["step"] - 1, group["interval"])
        if since == 0:
            state.update(part=self._part(grad, state, group, turn), m=torch.zeros(()), v=torch.zeros(()))
        part = state["part"]
        if group["split"] in ("random", "svd"):
            low = grad @ part.T
            moved = adam(low, state, since + 1, group["betas"], group["eps"]) @ part
            update: Tensor = moved + (grad - low @ part).sign()
            return update
        moved = adam(grad * part, state, since + 1, group["betas"], group["eps"])
        signed: Tensor = moved + (grad * (1 - part)).sign()
        return signed

    def _part(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any], turn: int) -> Tensor:
        """A quarter: directions (r, n), or 1 where Adam is and 0 elsewhere."""
        rank, split = round(0.25 * min(grad.shape)), group["split"]
        if split == "svd":
            return leading_directions(grad, rank).float()
        if split == "random":
            drawn = torch.randn(grad.shape[1], rank, generator=self._generator)
            rows: Tensor = torch.linalg.qr(drawn)[0].T
            return rows
        if split == "block":
            count, size = len(group["params"]), round(0.25 * len(group["params"]))
            number = state.setdefault("number", sum("number" in other for other in self.state.values()))
            active = [(count - 1 - place) % count for place in range(turn * size, (turn + 1) * size)]
            return torch.full((), float(number in active))
        numel = grad.shape[1] if split == "columns" else grad.numel()
        mask = torch.zeros(numel)
        mask[torch.randperm(numel, generator=self._generator)[: numel // 4]] = 1.0
        return mask.expand_as(grad) if split == "columns" else mask.view_as(grad)


class MeZO(torch.optim.Optimizer):
    """arXiv:2305.17333, Algorithm 1, with all noise and the weights before the step held; directions are our own."""

    def __init__(self, params: Any, lr: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step down a random direction."""
        lr, eps = self.param_groups[0]["lr"], self.param_groups[0]["eps"]
        params = [param for group in self.param_groups for param in group["params"]]
        before = [param.clone() for param in params]
        generator = seeded_generator(0, 0, self._steps, torch.device("cpu"))
        noise = [torch.randn(param.shape, generator=generator) for param in params]
        self._steps += 1

        def move(factor: float) -> None:
            for param, start, z in zip(params, before, noise, strict=True):
                param.copy_(start + factor * z)

        move(eps)
        plus = closure()
        move(-eps)
        slope = float((plus - closure()) / (2 * eps))
        move(-lr * slope)
        return plus
