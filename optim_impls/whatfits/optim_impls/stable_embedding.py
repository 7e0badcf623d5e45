"""An embedding whose optimizer states stay in 32 bits, with a layer norm that evens its gradients out.

Tim Dettmers, Mike Lewis, Sam Shleifer, Luke Zettlemoyer: 8-bit Optimizers via Block-wise Quantization,
arXiv:2110.02861, section 2.3: Xavier uniform initialisation, layer normalisation before position embeddings are added,
32-bit states.
"""

import torch
from torch import Tensor

__all__ = ["StableEmbedding", "wants_fp32_states"]

_MARK = "whatfits_fp32_states"


def wants_fp32_states(param: Tensor) -> bool:
    """Whether a parameter is the weight of a `StableEmbedding`."""
    return bool(getattr(param, _MARK, False))


class StableEmbedding(torch.nn.Embedding):
    """`torch.nn.Embedding` followed by a layer norm; takes the same arguments.

    An optimizer finds the weight by a mark on the parameter. Mark it anew (`mark`) where a copy lost it.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.norm = torch.nn.LayerNorm(embedding_dim, device=device, dtype=dtype)
        self.mark()

    def mark(self) -> None:
        """Ask optimizers for 32-bit states of the weight."""
        setattr(self.weight, _MARK, True)

    def reset_parameters(self) -> None:
        """Xavier uniform instead of a normal distribution, whose largest values are far out."""
        torch.nn.init.xavier_uniform_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(...) of indices to (..., embedding_dim)."""
        embedded: Tensor = self.norm(super().forward(input))
        return embedded
