"""fp32 copies of a low-precision model's weights, which the optimizer updates in their place."""

import torch
from torch import nn

__all__ = ["MasterWeights"]


class MasterWeights:
    """Copies of all trainable parameters; gradients come in, updated values go back."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        copies = [nn.Parameter(p.detach().float()) for p in self._parameters]
        self.named = list(zip(names, copies, strict=True))
        """The copies under the names of what they are copies of."""

    def take_gradients(self) -> None:
        """Copy the gradients to fp32 one by one; each low-precision one is freed once copied."""
        for (_, copy), parameter in zip(self.named, self._parameters, strict=True):
            if parameter.grad is not None:
                copy.grad = parameter.grad.float()
                parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the updated values to the model and drop the fp32 gradients."""
        for (_, copy), parameter in zip(self.named, self._parameters, strict=True):
            parameter.copy_(copy)
            copy.grad = None
