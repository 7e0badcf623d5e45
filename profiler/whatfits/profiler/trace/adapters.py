"""Low-rank adapters as peft adds them to a model on `meta`: LoRA and DoRA traced, 4-bit base weights modelled.

LoRA and DoRA run peft's own code. bitsandbytes' 4-bit layers need a device to quantise on, so `FrozenLinear4bit` stands
in for them: it stores what theirs stores and allocates in forward and backward what their CUDA path allocates. That part
is modelled after the source, not traced.
"""

import warnings
from typing import Any, cast

import peft
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
from torch import nn

from whatfits.profiler.trace.options import AdapterOptions

__all__ = ["FrozenLinear4bit", "attach_adapter"]

_BLOCK = 64
_NESTED_BLOCK = 256
_LORA_ALPHA = 16
_COMPUTE = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16_mixed": torch.bfloat16,
    "fp16_mixed": torch.float16,
}


def attach_adapter(model: nn.Module, options: AdapterOptions, *, rank: int, precision: str) -> nn.Module:
    """Freeze the model and add adapters to its target modules.

    4-bit models are made as users make them: every linear layer but the head in NF4 with nested statistics, computing in
    the precision's half dtype; under a mixed precision what is not quantised is then cast to fp32, which
    `prepare_model_for_kbit_training` does.

    Raises:
        NotImplementedError: DoRA over 4-bit weights, which is not modelled.
    """
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=_LORA_ALPHA,
        lora_dropout=options.dropout,
        target_modules="all-linear" if options.targets == ("all-linear",) else list(options.targets),
        use_dora=options.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    if options.quantized:
        if options.dora:
            raise NotImplementedError("DoRA over 4-bit weights is not modelled")
        _quantize(model, _COMPUTE[precision], upcast_rest=precision.endswith("_mixed"))
        config._register_custom_module({FrozenLinear4bit: LoraLinear4bit})
    with warnings.catch_warnings():  # peft asks for a property by the name it had in earlier transformers
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        with_adapter: nn.Module = peft.get_peft_model(
            cast("Any", model), config, autocast_adapter_dtype=options.autocast_adapter
        )
    return with_adapter


def _quantize(model: nn.Module, compute_dtype: torch.dtype, *, upcast_rest: bool) -> None:
    head = model.get_output_embeddings()  # type: ignore[operator]  # a method of transformers' models
    for parameter in model.parameters():
        parameter.requires_grad = False
        if upcast_rest:
            parameter.data = parameter.data.to(torch.float32)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, FrozenLinear4bit(module, compute_dtype))


class FrozenLinear4bit(nn.Linear):
    """A linear layer whose frozen weight is stored in 4 bits; stands in for bitsandbytes' `Linear4bit` on `meta`.

    Stored for n = out x in weights: n / 2 bytes of packed values, one byte of `absmax` per block of 64, four of
    `nested_absmax` per 256 of these blocks, two lookup tables of 16 and of 256 fp32 values, and an fp32 offset. Parameters,
    not buffers, so that they count as weights.

    Source: bitsandbytes 0.50, functional.py `quantize_4bit` with `compress_statistics`. Assumes: an even number of weights.
    """

    absmax: nn.Parameter
    nested_offset: nn.Parameter

    def __init__(self, like: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(like.in_features, like.out_features, bias=False, device="meta")
        device = like.weight.device
        num_weights = like.in_features * like.out_features
        num_blocks = -(-num_weights // _BLOCK)
        stored = {
            "weight": torch.empty((num_weights + 1) // 2, 1, dtype=torch.uint8, device=device),
            "absmax": torch.empty(num_blocks, dtype=torch.uint8, device=device),
            "quant_map": torch.empty(16, device=device),
            "nested_absmax": torch.empty(-(-num_blocks // _NESTED_BLOCK), device=device),
            "nested_quant_map": torch.empty(256, device=device),
            "nested_offset": torch.empty((), device=device),
        }
        for name, tensor in stored.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = like.bias
        self.compute_dtype = compute_dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Product in the compute dtype, in the input's dtype again.

        Source: bitsandbytes 0.50, nn/modules.py `Linear4bit.forward`.
        """
        given = x.dtype
        x = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        result: torch.Tensor = _Product4bit.apply(x, bias, self).to(given)
        return result

    def scales(self) -> torch.Tensor:
        """fp32 scale of each block before the offset is added."""
        return torch.empty_like(self.absmax, dtype=torch.float32)

    def values(self) -> torch.Tensor:
        """The weights in the compute dtype."""
        shape = (self.out_features, self.in_features)
        return torch.empty(shape, dtype=self.compute_dtype, device=self.weight.device)


class _Product4bit(torch.autograd.Function):
    """What `MatMul4Bit` allocates: the weights are dequantised for each product and saved for none.

    Source: bitsandbytes 0.50, autograd/_functions.py `MatMul4Bit`, backends/cuda/ops.py `_dequant_linear_fallback` and
    functional.py `dequantize_4bit`. Assumes: the path that dequantises, taken above 1,536 tokens on every device;
    with fewer a fused kernel may be chosen, which dequantises nothing in forward.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: FrozenLinear4bit
    ) -> torch.Tensor:
        ctx.layer = layer
        return _dequantised_product(x, bias, layer)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.matmul(gradient, _dequantised(ctx.layer)), None, None


def _dequantised_product(x: torch.Tensor, bias: torch.Tensor | None, layer: FrozenLinear4bit) -> torch.Tensor:
    scales = layer.scales()
    shifted = scales + layer.nested_offset
    weight = layer.values()
    product = F.linear(x, weight, bias)
    del shifted, scales, weight
    return product


def _dequantised(layer: FrozenLinear4bit) -> torch.Tensor:
    scales = layer.scales()
    scales += layer.nested_offset
    return layer.values()


class LoraLinear4bit(peft.tuners.lora.Linear):
    """peft's adapter over a 4-bit layer: the base result is cloned and the adapter's result cast before they are added.

    Source: peft 0.21, tuners/lora/bnb.py `Linear4bit.forward`.
    """

    def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Base result plus the scaled adapter's."""
        result: torch.Tensor = self.base_layer(x).clone()
        for name in self.active_adapters:
            down, up = cast("nn.Linear", self.lora_A[name]), self.lora_B[name]
            x = x if torch.is_autocast_enabled() else self._cast_input_dtype(x, down.weight.dtype)
            added = up(down(self.lora_dropout[name](x))) * self.scaling[name]
            if not torch.is_autocast_enabled():
                added = added.to(result.dtype)
            result = result + added
        return result
