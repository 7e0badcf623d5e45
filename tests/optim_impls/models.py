"""A small transformer-like model, and steps on it."""

from functools import partial

import torch
from torch import Tensor, nn

from whatfits.optim_impls.mezo import MeZO

__all__ = ["SmallModel", "loss_of", "make_model", "train"]

VOCABULARY = 128
HIDDEN = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up = nn.Linear(HIDDEN, 96, bias=False)
        self.down = nn.Linear(96, HIDDEN, bias=True)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.q_proj(self.norm(hidden))
        residual: Tensor = self.down(torch.relu(self.up(hidden)))
        return hidden + residual


class SmallModel(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.lm_head(hidden)
        return logits


def make_model(
    device: torch.device, dtype: torch.dtype = torch.float32, *, tied: bool = False, seed: int = 0
) -> SmallModel:
    """The model with weights drawn from a seed."""
    torch.manual_seed(seed)
    return SmallModel(tied=tied).to(device, dtype)


def loss_of(model: SmallModel, batch: int = 0) -> Tensor:
    """Loss on a batch that its number decides."""
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(VOCABULARY, (4, 17), generator=generator).to(model.lm_head.weight.device)
    logits = model(tokens[:, :-1]).flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


def train(model: SmallModel, optimizer: torch.optim.Optimizer, batches: range) -> list[float]:
    """A step per batch; the losses before each."""
    losses = []
    for batch in batches:
        if isinstance(optimizer, MeZO):
            losses.append(float(optimizer.step(partial(_loss_alone, model, batch))))
            continue
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def _loss_alone(model: SmallModel, batch: int) -> Tensor:
    """For methods without gradients."""
    return loss_of(model, batch)
