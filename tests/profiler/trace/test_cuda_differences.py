"""The rules that make a trace on `meta` equal a run on a device."""

import re
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers.masking_utils

from whatfits.profiler.trace.cuda_differences import (
    cuda_semantics,
    flash_attention,
    flash_backward_temporaries,
)
from whatfits.profiler.trace.events import Alloc
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.training_step import MicroBatchTracer, trace_micro_batch

BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
DIMS = {"L": 3, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 4, "d": 24, "V": 701}


def heads(batch: int, num: int, seq_len: int, dim: int) -> torch.Tensor:
    return torch.empty(batch, num, seq_len, dim, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize(
    ("seq_len", "head_dim", "seq_rounded", "head_rounded"),
    [(128, 64, 128, 64), (129, 65, 256, 96), (1, 128, 128, 128), (300, 129, 384, 192), (512, 200, 512, 256)],
)
def test_flash_backward_allocates_softmax_d_and_dq_accum(
    seq_len: int, head_dim: int, seq_rounded: int, head_rounded: int
) -> None:
    query = heads(3, 8, seq_len, head_dim)

    assert flash_backward_temporaries(BACKWARD, (query, query, query)) == [
        4 * 3 * 8 * seq_rounded,
        4 * 3 * 8 * seq_rounded * head_rounded,
    ]


def test_grouped_heads_get_expanded_gradients() -> None:
    query, key = heads(3, 8, 128, 64), heads(3, 2, 128, 64)

    assert flash_backward_temporaries(BACKWARD, (query, query, key))[2:] == [2 * 3 * 128 * 8 * 64] * 2


def test_other_ops_have_no_temporaries() -> None:
    assert flash_backward_temporaries(torch.ops.aten.add.Tensor, (1, 2)) == []


def test_scratch_lies_in_every_layers_backward() -> None:
    trace = trace_micro_batch(DIMS, StepOptions())

    internal = [t.nbytes for t in trace.parts["backward"] if isinstance(t, Alloc) and t.internal]
    assert internal == [4 * 2 * 4 * 256, 4 * 2 * 4 * 256 * 32] * DIMS["L"]


def test_a_mask_is_refused() -> None:
    query = heads(1, 2, 16, 32)

    with pytest.raises(NotImplementedError, match="takes no mask"):
        flash_attention(query, query, query, attn_mask=torch.empty(16, 16, device="meta"))


def test_values_of_another_head_dim_are_refused() -> None:
    query = heads(1, 2, 16, 32)

    with pytest.raises(NotImplementedError, match="one head dim, not 32 and 16"):
        flash_attention(query, query, heads(1, 2, 16, 16))


@pytest.mark.parametrize("head_dim", [32, 33, 36])
def test_heads_come_back_in_their_own_size(head_dim: int) -> None:
    query = heads(1, 2, 16, head_dim)

    assert flash_attention(query, query, query, is_causal=True).shape == (1, 2, 16, head_dim)


def test_grouped_heads_reach_the_kernel_unexpanded() -> None:
    trace = trace_micro_batch({**DIMS, "k": 2}, StepOptions())

    ops = {t.op for t in trace.parts["forward"] if isinstance(t, Alloc)}
    assert "_scaled_dot_product_flash_attention" in ops
    assert not {"repeat_interleave", "_scaled_dot_product_attention_math"} & ops


def chosen() -> tuple[object, object]:
    return F.scaled_dot_product_attention, vars(transformers.masking_utils)["is_tracing"]


def fail_inside() -> None:
    with cuda_semantics():
        assert chosen()[0] is flash_attention
        raise RuntimeError("stop")


def test_semantics_are_restored_after_an_error() -> None:
    before = chosen()

    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert chosen() == before


def backward_adds(*, with_rule: bool) -> Counter[str]:
    """Modules whose backward allocates a sum, layers taken together."""
    tracer = MicroBatchTracer(build_model(DIMS, StepOptions()))
    if not with_rule:
        tracer.recorder._in_place = lambda *_: None
    tokens = tracer.micro_batch(DIMS["b"], DIMS["s"])["backward"]
    return Counter(re.sub(r"\d+", "*", t.module) for t in tokens if isinstance(t, Alloc) and t.op == "add")


def test_gradients_that_meet_are_added_in_place_but_where_a_view_shares_the_storage() -> None:
    """Recorded device histories show the same two sums in every layer that do allocate, and no other."""
    shared = {"model.layers.*.mlp.gate_proj": DIMS["L"], "model.layers.*.self_attn.k_proj": DIMS["L"]}

    assert backward_adds(with_rule=True) == shared
    assert backward_adds(with_rule=False).total() >= 2 * sum(shared.values())
