"""Named precisions against what torch's own modules and optimizers hold."""

import pytest
import torch

from whatfits.estimator.specs import Dtype, Framework, Precision, expand_precision

TORCH = {Dtype.FP32: torch.float32, Dtype.BF16: torch.bfloat16}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.BF16_MIXED])
def test_dtypes_are_those_of_a_real_step(precision: Precision) -> None:
    expected = expand_precision(precision)
    layer = torch.nn.Linear(8, 8, dtype=TORCH[expected.param_dtype])
    optimizer = torch.optim.AdamW(layer.parameters())
    autocast = expected.param_dtype is not expected.compute_dtype
    with torch.autocast("cpu", dtype=TORCH[expected.compute_dtype], enabled=autocast):
        out = layer(torch.ones(2, 8, dtype=TORCH[expected.param_dtype]))
    out.sum().backward()
    optimizer.step()
    assert layer.weight.grad is not None
    held = (out.dtype, layer.weight.grad.dtype, optimizer.state[layer.weight]["exp_avg"].dtype)
    assert held == (
        TORCH[expected.compute_dtype],
        TORCH[expected.grad_dtype],
        TORCH[expected.optimizer_state_dtype],
    )


def test_master_weights_belong_to_bf16_master_alone() -> None:
    assert [p for p in Precision if expand_precision(p).master_weights] == [Precision.BF16_MASTER]


def test_megatron_reduces_fp32_gradients_of_bf16_weights() -> None:
    assert expand_precision(Precision.BF16_MASTER, Framework.MEGATRON).grad_dtype is Dtype.FP32
