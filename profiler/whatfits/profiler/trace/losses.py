"""Losses that make fewer logits at a time, put in place of a causal model's head and loss without touching its code.

| name | head and loss |
|---|---|
| `standard` | all logits, cast to fp32: the model's own |
| `chunked` | logits of eighths of the sequence, each cast to fp32 only while its loss is computed |
| `fused_linear` | logits of few tokens at a time in one buffer, turned into gradients at once; nothing kept for backward |
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
from torch import nn

from whatfits.estimator.profile.expressions import with_derived_symbols

__all__ = ["NUM_CHUNKS", "fused_chunk_rows", "install_loss"]

NUM_CHUNKS = 8
_IGNORED = -100


def install_loss(model: Any, name: str) -> None:
    """Replace the loss of a Hugging Face causal language model by the named one.

    The head stays a module of the model that is called once in forward. What it returns is handed by the model to its
    loss function, which is replaced too.

    Raises:
        ValueError: no loss has that name.
    """
    if name == "standard":
        return
    if name == "chunked":
        head_forward: Callable[..., Any] = _chunked_head(model.lm_head.forward)
        loss_function: Callable[..., torch.Tensor] = chunked_loss
    elif name == "fused_linear":
        head_forward, loss_function = _KeptForLoss, _fused_loss_of(model.lm_head)
    else:
        raise ValueError(f"unknown loss {name!r}; known: standard, chunked, fused_linear")
    model.lm_head.forward = head_forward
    model.loss_function = loss_function


def _next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Labels shifted so that a token predicts the next; the last predicts nothing."""
    padded = F.pad(labels, (0, 1), value=_IGNORED)
    return padded[..., 1:].contiguous()


def _chunked_head(
    forward: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    def chunks(hidden: torch.Tensor) -> list[torch.Tensor]:
        return [forward(part) for part in hidden.tensor_split(NUM_CHUNKS, dim=1)]

    return chunks


def chunked_loss(logits: list[torch.Tensor], labels: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
    """Mean cross-entropy over the labels that count, from one chunk of logits after the other.

    Source: torchtune 0.6, modules/loss/ce_chunked_output_loss.py `CEWithChunkedOutputLoss`, not compiled.
    """
    shifted = _next_tokens(labels)
    counted = (shifted != _IGNORED).sum()
    targets = [part.reshape(-1) for part in shifted.tensor_split(len(logits), dim=1)]
    rows = [part.reshape(-1, part.size(-1)) for part in logits]
    total: Any = 0.0
    for row, target in zip(rows, targets, strict=True):
        total += F.cross_entropy(row.float(), target, ignore_index=_IGNORED, reduction="sum")
    mean: torch.Tensor = total / counted
    return mean


class _KeptForLoss:
    """The head's input on its way through the model to the loss, which takes it out."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self._hidden: torch.Tensor | None = hidden

    def take(self) -> torch.Tensor:
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return hidden


def _fused_loss_of(head: nn.Linear) -> Callable[..., torch.Tensor]:
    def loss_function(logits: _KeptForLoss, labels: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
        hidden = logits.take()
        padded = F.pad(labels, (0, 1), value=_IGNORED)
        targets = padded[..., 1:].contiguous().view(-1)
        loss: torch.Tensor = FusedLinearCrossEntropy.apply(
            hidden.view(-1, hidden.shape[-1]), head.weight, targets
        )
        del padded, targets
        return loss

    return loss_function


def fused_chunk_rows(num_tokens: int, hidden_size: int, vocab_size: int) -> int:
    """Tokens whose logits exist at a time: as many as make the logits about as large as the hidden states.

    The estimator's symbol `fused_rows`.
    """
    symbols = with_derived_symbols({"s": num_tokens, "h": hidden_size, "V": vocab_size})
    return int(symbols["fused_rows"])


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy in one: forward computes the gradients too, backward hands them out.

    Per chunk: logits, replaced in place by their gradient, which is multiplied into the gradients of the hidden states and
    of the weight. Where autocast need not cast, one buffer serves all chunks' logits. Allocates what Liger's CUDA path
    allocates, in its order.

    Source: Liger-Kernel 0.8.5, ops/fused_linear_cross_entropy.py. Assumes: mean reduction, no bias, compute capability 8.0
    or later.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        num_tokens, hidden_size = hidden.shape
        rows = fused_chunk_rows(num_tokens, hidden_size, weight.shape[0])
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(num_tokens, dtype=torch.float32, device=hidden.device)
        mask = targets != _IGNORED
        counted = mask.sum()
        del counted  # its value is read back; the kernel below counts for itself
        uncast = _multiplies_as_stored(hidden, weight)
        shape = (rows, weight.shape[0])
        buffer = torch.empty(shape, dtype=hidden.dtype, device=hidden.device) if uncast else None
        for start in range(0, num_tokens, rows):
            chunk = slice(start, min(start + rows, num_tokens))
            if buffer is None:
                logits = hidden[chunk] @ weight.t()
            else:
                logits = buffer[: chunk.stop - start]
                torch.mm(hidden[chunk], weight.t(), out=logits)
            torch.ops.whatfits.cross_entropy_into_gradient(logits, targets[chunk], losses[chunk], targets)
            if uncast:
                torch.mm(logits, weight, out=hidden_gradient[chunk])
            else:
                hidden_gradient[chunk] = logits @ weight
            if weight_gradient is not None:
                _accumulate_weight_gradient(weight_gradient, logits, hidden[chunk])
            del logits
        del buffer
        loss = losses.sum()
        del mask, losses
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if not _is_one(gradient):
            hidden_gradient.mul_(gradient)
            if weight_gradient is not None:
                weight_gradient.mul_(gradient)
        return hidden_gradient, weight_gradient, None


def _multiplies_as_stored(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a product of the two runs in their own dtype, with the device's autocast as it is."""
    if hidden.dtype != weight.dtype:
        return False
    return not torch.is_autocast_enabled() or hidden.dtype == torch.get_autocast_dtype("cuda")


def _accumulate_weight_gradient(
    total: torch.Tensor, logits_gradient: torch.Tensor, hidden: torch.Tensor
) -> None:
    """Add gradient^T hidden to the total; only fp32 logits need the product beside it."""
    if logits_gradient.dtype == torch.float32:
        total += torch.mm(logits_gradient.t(), hidden)
        return
    same = hidden if hidden.dtype == logits_gradient.dtype else hidden.to(logits_gradient.dtype)
    torch.ops.whatfits.add_product(total, logits_gradient, same)


def _is_one(gradient: torch.Tensor) -> bool:
    """Whether the loss is what backward started from; allocates what `torch.equal` with a fresh scalar allocates."""
    one = torch.ones((), device=gradient.device)
    equal = gradient == one
    all_equal = equal.all()
    answer = gradient.is_meta or bool(all_equal.item())
    del all_equal, equal
    return answer


@torch.library.custom_op("whatfits::cross_entropy_into_gradient", mutates_args=("logits", "losses"))
def _cross_entropy_into_gradient(
    logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, all_targets: torch.Tensor
) -> None:
    """Replace logits by the gradient of the mean loss and write each row's share of it: one kernel, nothing allocated."""
    counted = int((all_targets != _IGNORED).sum())
    values = logits.float()
    counts = targets != _IGNORED
    index = targets.where(counts, 0).unsqueeze(1)
    logarithms = values.log_softmax(-1)
    losses.copy_((-logarithms.gather(1, index).squeeze(1) / counted).where(counts, 0))
    probabilities = logarithms.exp_()
    probabilities.scatter_add_(1, index, torch.full_like(index, -1, dtype=probabilities.dtype))
    logits.copy_((probabilities / counted).where(counts.unsqueeze(1), 0))


@_cross_entropy_into_gradient.register_fake
def _(logits: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, all_targets: torch.Tensor) -> None:
    """Nothing is computed and nothing allocated without values."""


@torch.library.custom_op("whatfits::add_product", mutates_args=("total",))
def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left^T right to the total: `addmm` with an output, which only a device has for mixed dtypes."""
    total.add_(left.t().to(total.dtype) @ right.to(total.dtype))


@_add_product.register_fake
def _(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Nothing is computed and nothing allocated without values."""
