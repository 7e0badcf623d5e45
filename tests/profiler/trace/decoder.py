"""A decoder-only transformer and its training step, written from a public description.

Stanford's CS336 has its students build this model from the operations up (assignment 1, "Building a transformer
language model"): linear maps as `einsum`, RMSNorm in fp32, rotary embeddings over interleaved pairs, softmax and
cross-entropy with the maximum subtracted, SwiGLU, AdamW by hand. People train it under torch's memory recorder
(assignment 2) and publish what the allocator did.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderDims:
    """Sizes of a decoder."""

    vocab: int
    width: int
    layers: int
    heads: int
    hidden: int
    context: int


class Linear(nn.Module):
    """y = W x, without a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map the last dim."""
        return torch.einsum("bsi,oi->bso", x, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x), times a gain, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dim."""
        given = x.dtype
        x = x.to(torch.float32)
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * scale
        return (self.weight * x).to(given)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of the last dim by the angle of their position."""
    first, second = x.unflatten(-1, (-1, 2)).movedim(-1, 0)
    rotated_first = cos * first - sin * second
    rotated_second = sin * first + cos * second
    return torch.stack((rotated_first, rotated_second), dim=-1).flatten(-2).contiguous()


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Over the last dim, with the maximum subtracted."""
    shifted = x - torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(shifted)
    return exponentials / torch.sum(exponentials, dim=-1, keepdim=True)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention in full."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = softmax(scores)
    return torch.einsum("bhqk,bhkd->bhqd", weights, value)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, dims: DecoderDims) -> None:
        super().__init__()
        self.heads = dims.heads
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = (
            Linear(dims.width, dims.width) for _ in range(4)
        )

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Attend within each sequence."""
        batch, seq_len, _ = x.shape
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        query = rotate(query, cos[:seq_len], sin[:seq_len])
        key = rotate(key, cos[:seq_len], sin[:seq_len])
        places = torch.arange(seq_len, device=x.device)
        mask = places[:, None] >= places[None, :]
        heads = attend(query, key, value, mask)
        heads = heads.transpose(1, 2).reshape(batch, seq_len, -1)
        output: torch.Tensor = self.output_proj(heads)
        return output


class SwiGLU(nn.Module):
    """W2 (silu(W1 x) * W3 x)."""

    def __init__(self, dims: DecoderDims) -> None:
        super().__init__()
        self.w1 = Linear(dims.width, dims.hidden)
        self.w2 = Linear(dims.hidden, dims.width)
        self.w3 = Linear(dims.width, dims.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The feed-forward part of a block."""
        output: torch.Tensor = self.w2(silu(self.w1(x)) * self.w3(x))
        return output


def silu(x: torch.Tensor) -> torch.Tensor:
    """x sigmoid(x)."""
    return x * torch.sigmoid(x)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dims: DecoderDims) -> None:
        super().__init__()
        self.attn = Attention(dims)
        self.ffn = SwiGLU(dims)
        self.ln1, self.ln2 = RMSNorm(dims.width), RMSNorm(dims.width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """One layer."""
        attended = self.attn(self.ln1(x), cos, sin)
        middle = x + attended
        fed = self.ffn(self.ln2(middle))
        output: torch.Tensor = middle + fed
        return output


class Decoder(nn.Module):
    """Token ids to logits."""

    def __init__(self, dims: DecoderDims) -> None:
        super().__init__()
        self.dims = dims
        self.embedding = nn.Parameter(torch.empty(dims.vocab, dims.width))
        self.layers = nn.ModuleList(Block(dims) for _ in range(dims.layers))
        self.norm = RMSNorm(dims.width)
        self.head = Linear(dims.width, dims.vocab)
        half = dims.width // dims.heads // 2
        self.register_buffer("cos", torch.empty(dims.context, half))
        self.register_buffer("sin", torch.empty(dims.context, half))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of every position."""
        x = self.embedding[token_ids]
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood."""
    negative = -log_softmax(logits)
    return torch.mean(torch.gather(negative, -1, targets.unsqueeze(-1)))


def log_softmax(x: torch.Tensor) -> torch.Tensor:
    """Over the last dim, with the maximum subtracted."""
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    x = x - largest
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay, parameter by parameter."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                t = state.get("t", 1)
                grad = p.grad.data
                p.data -= group["lr"] * group["decay"] * p.data
                m = state.get("m", torch.zeros_like(p.data))
                v = state.get("v", torch.zeros_like(p.data))
                rate = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                state["m"] = beta1 * m + (1 - beta1) * grad
                state["v"] = beta2 * v + (1 - beta2) * grad**2
                p.data -= rate * state["m"] / (torch.sqrt(state["v"]) + group["eps"])
                state["t"] = t + 1
