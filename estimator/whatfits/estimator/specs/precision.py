"""What a named precision means, tensor by tensor."""

from dataclasses import dataclass

from whatfits.estimator.specs.enums import Dtype, Framework, Precision

__all__ = ["PrecisionDtypes", "expand_precision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionDtypes:
    """Dtypes of a training run."""

    param_dtype: Dtype
    """Weights the optimizer updates, as the module holds them."""
    compute_dtype: Dtype
    """Matrix products and attention."""
    grad_dtype: Dtype
    """Gradients as the optimizer sees them."""
    reduce_dtype: Dtype
    """Gradients on the wire."""
    optimizer_state_dtype: Dtype
    """Unquantised optimizer states."""
    master_weights: bool = False
    """Whether an fp32 copy of the weights is kept beside them."""


def expand_precision(precision: Precision, framework: Framework = Framework.PYTORCH) -> PrecisionDtypes:
    """The dtypes a precision stands for in a framework.

    Mixed precision is autocast (fp32 weights and gradients, low-precision compute) under every framework; what differs
    under `fsdp2` is that shards are cast when gathered, so that no cast copies are held.

    Source: torch.amp.autocast; torch.distributed.fsdp.MixedPrecisionPolicy (param_dtype bf16, reduce_dtype fp32 in
        torchtitan's default); Megatron's and DeepSpeed's fp32 master weights.
    """
    if precision is Precision.BF16_MASTER:
        reduce_dtype = Dtype.FP32 if framework is Framework.MEGATRON else Dtype.BF16
        return PrecisionDtypes(
            param_dtype=Dtype.BF16,
            compute_dtype=Dtype.BF16,
            grad_dtype=reduce_dtype,
            reduce_dtype=reduce_dtype,
            optimizer_state_dtype=Dtype.FP32,
            master_weights=True,
        )
    stored, computed = {
        Precision.FP32: (Dtype.FP32, Dtype.FP32),
        Precision.BF16: (Dtype.BF16, Dtype.BF16),
        Precision.BF16_MIXED: (Dtype.FP32, Dtype.BF16),
        Precision.FP16_MIXED: (Dtype.FP32, Dtype.FP16),
        Precision.FP8: (Dtype.BF16, Dtype.FP8),
    }[precision]
    return PrecisionDtypes(
        param_dtype=stored,
        compute_dtype=computed,
        grad_dtype=stored,
        reduce_dtype=stored,
        optimizer_state_dtype=stored,
    )
