"""torchao's 4-bit and fp8 states, made by torchao itself; its update is compiled, so that no step is taken here."""

from typing import Any

import pytest
import torch
import torchao.optim

from tests.estimator.memory.optimizers import references
from whatfits.estimator.memory.optimizers.low_bit import AdamW4bit, AdamWFp8, LowBitAdamW

CASES: dict[str, tuple[type[LowBitAdamW], Any]] = {
    "adamw_4bit": (AdamW4bit, torchao.optim.AdamW4bit),
    "adamw_fp8": (AdamWFp8, torchao.optim.AdamWFp8),
}


def held_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a plain tensor, or of the tensors a quantised one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.untyped_storage().nbytes()
    return sum(getattr(tensor, name).untyped_storage().nbytes() for name in tensor.__tensor_flatten__()[0])


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_state_bytes_equal_torchaos(case: str, dtype_bytes: int) -> None:
    build, factory = CASES[case]
    parameters = references.make_parameters(references.SHAPES)
    tensors = references.torch_parameters(parameters, dtype_bytes, "cpu")
    optimizer = factory(tensors)
    expected = {
        parameter.name: sum(held_bytes(optimizer._new_buffer(tensor, signed)) for signed in (True, False))
        for parameter, tensor in zip(parameters, tensors, strict=True)
    }

    program = build(param_dtype_bytes=dtype_bytes)
    actual = {p.name: sum(s.nbytes for s in program.states(p) if s.on_device) for p in parameters}

    assert actual == expected
