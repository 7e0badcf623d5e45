"""Linear layers whose weights are 8-bit integers: 1.04 bytes a weight instead of 2 or 4, trained without a float copy.

Zhenyu Zhang et al.: Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients,
arXiv:2407.08296, section 3.4: weights stay in INT8; an update is added to their float values group by group and rounded
stochastically, so that updates smaller than a step of the integers are kept on average.

Codes, scales and zero points are buffers. The layer's `weight` is a stand-in of one element spread over the weight's
shape: autograd gives it a gradient and an optimizer takes it as a parameter, but it holds no memory.

Differs from the released Q-GaLore: scales and zero points are in `state_dict`; the zero point is an integer.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from whatfits.optim_impls.affine import Affine, dequantize_affine, quantize_affine
from whatfits.optim_impls.chunks import rows_at_a_time

__all__ = [
    "GROUP_SIZE",
    "Int8Linear",
    "Int8Weight",
    "add_to_int8",
    "int8_of",
    "int8_update_bytes",
    "quantize_linears",
]

GROUP_SIZE = 128
LEVELS = 255
_INT8 = "whatfits_int8"


class Int8Weight(NamedTuple):
    """A weight in integers, as a parameter that stands in for it carries it."""

    quantised: Affine  # codes (out, in)
    group_size: int

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """W in a float dtype."""
        weight = torch.empty(self.quantised.codes.shape, dtype=dtype, device=self.quantised.codes.device)
        dequantize_affine(self.quantised, weight, group_size=self.group_size)
        return weight


class Int8Linear(nn.Module):
    """y = x W^T + b with W in 8-bit integers; W is made in x's dtype for each product, and not kept."""

    codes: Tensor  # (out, in) uint8
    scale: Tensor  # (groups,) fp32
    zero: Tensor  # (groups,) uint8

    def __init__(self, linear: nn.Linear, *, group_size: int = GROUP_SIZE) -> None:
        super().__init__()
        if group_size < 2:
            raise ValueError(f"group_size is {group_size}; accepted: 2 and more")
        self.in_features, self.out_features, self.group_size = (
            linear.in_features,
            linear.out_features,
            group_size,
        )
        shape, device = linear.weight.shape, linear.weight.device
        groups = -(-shape.numel() // group_size)
        self.register_buffer("codes", torch.empty(shape, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(groups, dtype=torch.float32, device=device))
        self.register_buffer("zero", torch.empty(groups, dtype=torch.uint8, device=device))
        self.bias = linear.bias
        self._make_stand_in(linear.weight)
        values = linear.weight.detach().float().clone()
        quantize_affine(values, self.int8.quantised, group_size=group_size, levels=LEVELS)

    @property
    def int8(self) -> Int8Weight:
        """Codes, scales and zero points."""
        return Int8Weight(Affine(self.codes, self.scale, self.zero), self.group_size)

    def _make_stand_in(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(_stand_in(weight), requires_grad=weight.requires_grad)
        setattr(self.weight, _INT8, self.int8)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        product: Tensor = _Product.apply(x, self.weight, self.bias, self.int8)  # type: ignore[no-untyped-call]  # torch's
        return product

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """Moves as other modules do, but scales stay fp32, and the stand-in keeps to one element."""
        probe = fn(torch.empty(0, dtype=self.weight.dtype, device=self.codes.device))
        for name in ("codes", "scale", "zero"):
            self._buffers[name] = getattr(self, name).to(probe.device)
        self.weight.data = _stand_in(self.weight, dtype=probe.dtype, device=probe.device)
        setattr(self.weight, _INT8, self.int8)
        if self.bias is not None:
            self.bias.data = fn(self.bias.data)
        del recurse  # there are no modules inside
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Int8Linear":
        """A copied stand-in would be as large as the weight, and would not know its integers."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin.in_features, twin.out_features, twin.group_size = (
            self.in_features,
            self.out_features,
            self.group_size,
        )
        for name in ("codes", "scale", "zero"):
            twin.register_buffer(name, getattr(self, name).clone())
        twin.bias = deepcopy(self.bias, memo)
        twin._make_stand_in(self.weight)  # noqa: SLF001 (a twin of this class)
        memo[id(self.weight)] = twin.weight
        return twin.train(self.training)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}weight")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = self._parameters.pop("weight")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._parameters["weight"] = weight

    def extra_repr(self) -> str:
        """As `nn.Linear` has it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.group_size}"
        )


def _stand_in(
    weight: Tensor, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    one = torch.zeros((), dtype=dtype or weight.dtype, device=device or weight.device)
    return one.expand(weight.shape)


class _Product(torch.autograd.Function):
    """x W^T + b, with W made anew for the backward pass and its gradient given to the stand-in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stand_in: Tensor, bias: Tensor | None, int8: Int8Weight) -> Tensor:
        """(..., in) to (..., out); ctx is torch's."""
        ctx.int8, ctx.dtype = int8, stand_in.dtype
        ctx.save_for_backward(x)
        return functional.linear(x, int8.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Gradients of x, of the weight and of the bias; ctx is torch's."""
        (grad,), (x,) = grads, ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ ctx.int8.dequantize(grad.dtype) if wants_x else None,
            (rows.T @ x.reshape(-1, x.shape[-1])).to(ctx.dtype) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
            None,
        )


def quantize_linears(
    model: nn.Module,
    group_size: int = GROUP_SIZE,
    *,
    skip: tuple[str, ...] = ("lm_head", "output", "head", "classifier"),
) -> nn.Module:
    """Replace a model's linear layers by `Int8Linear`, in place; the model itself is returned.

    Args:
        model: Changed.
        group_size: Consecutive weights that share a scale.
        skip: Last parts of the names of layers to leave; by default the output head.
    """
    for module in list(model.modules()):
        for child_name, child in list(module.named_children()):
            if type(child) is nn.Linear and child_name not in skip:
                setattr(module, child_name, Int8Linear(child, group_size=group_size))
    return model


def int8_of(param: Tensor) -> Int8Weight | None:
    """The integers of the weight that a parameter stands in for; None for other parameters."""
    found: Int8Weight | None = getattr(param, _INT8, None)
    return found


def add_to_int8(
    weight: Int8Weight,
    write_update: Callable[[Tensor, Tensor, slice], None],
    generator: torch.Generator | None,
) -> None:
    """Change weights piece by piece: to float, the update, and stochastically rounded back.

    Args:
        weight: Changed.
        write_update: Given (k, in) weights in fp32, as much scratch, and the rows they are; changes the weights.
        generator: Of the weight's device, for the rounding; None for torch's own.
    """
    codes, scale, zero = weight.quantised
    rows, columns = codes.shape
    step, size = rows_at_a_time((rows, columns), weight.group_size), weight.group_size
    values, scratch = (torch.empty((step, columns), device=codes.device) for _ in range(2))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        k = part.stop - start
        groups = slice(start * columns // size, -(-part.stop * columns // size))
        piece = Affine(codes[part], scale[groups], zero[groups])
        dequantize_affine(piece, values[:k], group_size=size)
        write_update(values[:k], scratch[:k], part)
        scratch[:k].uniform_(generator=generator)
        quantize_affine(values[:k], piece, group_size=size, levels=LEVELS, noise=scratch[:k])


def int8_update_bytes(shape: tuple[int, ...], group_size: int) -> int:
    """What `add_to_int8` holds: two fp32 pieces, and the least and largest value of each group."""
    rows = rows_at_a_time(shape, group_size)
    numel = rows * shape[1]
    return 8 * numel + 8 * (numel // group_size or 1)
