"""A small LLaMA that learns a random Markov chain: what our optimizers and their references train on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from whatfits.optim_impls.build import build_optimizer
from whatfits.optim_impls.declare import Role
from whatfits.optim_impls.roles import split_by_role

__all__ = ["BATCH", "SEQUENCE", "STEPS", "Case", "make_llama", "mean_last", "train_own", "train_reference"]

VOCABULARY, SEQUENCE, BATCH, FOLLOWERS = 256, 32, 16, 4
STEPS = 200
MEAN_OF = 20
ESTIMATE_INTERVAL = 10
"""Steps between estimates of a Hessian. Source: arXiv:2305.14342, section 2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One of our methods beside what it must not be worse than."""

    name: str
    reference: str
    """`module.Class`."""
    hyper: Mapping[str, Any]
    """Ours."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its, for all groups."""
    projected: Mapping[str, Any] = field(default_factory=dict)
    """Its, for the group of matrices."""
    tolerance: float = 0.01
    label: str = ""
    note: str = "same method"
    """What the reference is to the method."""
    one_batch: bool = False
    """Whether each step sees the same tokens, for what learns too little in some hundred steps to see it otherwise."""

    @property
    def title(self) -> str:
        """The method, with its form where it has several."""
        return f"{self.name} ({self.label})" if self.label else self.name


@cache
def batches(steps: int = STEPS) -> tuple[Tensor, ...]:
    """Tokens of every step: each token has four followers of unequal chance. Shape: (batch, sequence)."""
    generator = torch.Generator().manual_seed(0)
    followers = torch.stack(
        [torch.randperm(VOCABULARY, generator=generator)[:FOLLOWERS] for _ in range(VOCABULARY)]
    )
    chances = torch.rand(VOCABULARY, FOLLOWERS, generator=generator) + 0.05
    tokens = [torch.randint(VOCABULARY, (steps * BATCH,), generator=generator)]
    for _ in range(SEQUENCE - 1):
        choice = torch.multinomial(chances[tokens[-1]], 1, generator=generator)
        tokens.append(followers[tokens[-1]].gather(1, choice).squeeze(1))
    return tuple(torch.stack(tokens, 1).chunk(steps))


def make_llama() -> LlamaForCausalLM:
    """Two layers of 64, in fp32, with weights drawn from a seed."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=SEQUENCE,
            initializer_range=0.05,
            tie_word_embeddings=False,
        )
    )


def train_own(case: Case, steps: int = STEPS) -> list[float]:
    """Losses of our method, one before each step."""
    model = make_llama()
    return _train(model, build_optimizer(case.name, model, **case.hyper), case, steps)


def train_reference(case: Case, steps: int = STEPS) -> list[float]:
    """Losses of the reference on the same weights and batches."""
    model = make_llama()
    groups = split_by_role(model)
    for group in groups:
        if group["role"] == Role.MATRIX:
            group.update(case.projected)
    module, _, name = case.reference.rpartition(".")
    make = getattr(import_module(module), name)
    return _train(model, make(groups, **case.settings), case, steps)


def mean_last(losses: list[float]) -> float:
    """Mean loss of the last steps."""
    last = losses[-MEAN_OF:]
    return sum(last) / len(last)


def _train(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, case: Case, steps: int) -> list[float]:
    losses = []
    for number in range(steps):
        tokens = batches()[0 if case.one_batch else number]
        if case.name == "mezo":
            losses.append(float(optimizer.step(partial(_loss_alone, model, tokens))))
            continue
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if hasattr(optimizer, "update_hessian") and number % ESTIMATE_INTERVAL == 0:
            _sampled_loss(model, tokens, seed=number).backward()
            optimizer.update_hessian()
    return losses


def _sampled_loss(model: LlamaForCausalLM, tokens: Tensor, *, seed: int) -> Tensor:
    """Of labels drawn from the model's own predictions, beside no other gradients."""
    model.zero_grad()
    logits = model(input_ids=tokens).logits.flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
    return torch.nn.functional.cross_entropy(logits, labels)


@torch.no_grad()
def _loss_alone(model: LlamaForCausalLM, tokens: Tensor) -> Any:
    return model(input_ids=tokens, labels=tokens).loss
