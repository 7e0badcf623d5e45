"""Autocast on `meta` does what autocast does on a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from whatfits.profiler.measure.cpu_kernels import CPU
from whatfits.profiler.trace.autocast import (
    CUDA,
    AutocastDevice,
    CastPolicy,
    autocast_on_meta,
    read_cast_lists,
)
from whatfits.profiler.trace.events import Alloc
from whatfits.profiler.trace.record import record_events

BF16 = torch.bfloat16


def weight(*size: int, requires_grad: bool = True) -> torch.Tensor:
    return torch.empty(size, device="meta", requires_grad=requires_grad)


def casts(step: Callable[[], Any], *existing: torch.Tensor) -> list[int]:
    """Bytes of the casts that a step makes."""
    recording = record_events(lambda _enter: step(), existing=iter(existing))
    return [t.nbytes for t in recording.tokens if isinstance(t, Alloc) and t.op == "_to_copy"]


def test_the_lists_hold_the_ops_that_torch_has_a_cuda_kernel_for() -> None:
    registered = {
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
    }

    listed = {
        f"aten::{op._schema.name.partition('::')[2]}.{op._schema.overload_name}".rstrip(".")
        for op in CUDA.cast_lists()
    }
    forbidden = {"aten::binary_cross_entropy"}
    of_cudnn = {"aten::cudnn_convolution", "aten::cudnn_convolution_transpose"}
    assert registered - forbidden - of_cudnn == listed


def test_a_header_without_the_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="defines no AT_FORALL_LOWER_PRECISION_FP"):
        read_cast_lists("")


def softmax_and_sum(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return F.softmax(x, -1), x.sum(), x.sum(-1), x.exp(), x.norm(), x.norm(dim=1), x.cumsum(0)


def products(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x @ x.mT, F.linear(x, x), torch.addmm(x, x, x.mT), torch.baddbmm(x[None], x[None], x.mT[None])


def mixtures(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    half = x.to(BF16)
    return torch.cat([x, half]), torch.stack([half, half]), x + half, torch.cat([half, half])


def losses(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    half = x.to(BF16)
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return F.cross_entropy(half, labels), F.mse_loss(half, half), F.nll_loss(half, labels)


@pytest.mark.parametrize("function", [softmax_and_sum, products, mixtures, losses])
def test_dtypes_are_those_of_a_real_cpu(
    function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
) -> None:
    with torch.autocast("cpu", dtype=BF16):
        expected = [t.dtype for t in function(torch.ones(4, 4))]

    with autocast_on_meta(CPU), torch.autocast("meta", dtype=BF16):
        assert [t.dtype for t in function(torch.ones(4, 4, device="meta"))] == expected


def test_cuda_sums_in_fp32_what_a_cpu_sums_as_it_is() -> None:
    def dtypes(device: AutocastDevice) -> list[torch.dtype]:
        with autocast_on_meta(device), torch.autocast(device.type, dtype=BF16):
            x = torch.empty(4, 4, dtype=BF16, device="meta")
            return [t.dtype for t in softmax_and_sum(x)]

    assert dtypes(CUDA) == [torch.float32] * 7
    assert dtypes(CPU) == [BF16] * 7


def test_an_explicit_dtype_is_respected_and_float64_left_alone() -> None:
    with autocast_on_meta(), torch.autocast("cuda", dtype=BF16):
        x = torch.empty(4, 4, dtype=BF16, device="meta")
        assert x.sum(dtype=BF16).dtype == BF16
        assert F.softmax(x, -1, dtype=torch.float64).dtype == torch.float64
        assert (x.double() @ x.double()).dtype == torch.float64


def test_only_a_weight_that_trains_is_cast_once_until_the_outermost_context_ends() -> None:
    trained, frozen = weight(8, 4), weight(16, 8, requires_grad=False)
    x = torch.empty(2, 4, dtype=BF16, device="meta")

    def step() -> None:
        for _ in range(2):
            with torch.autocast("cuda", dtype=BF16):
                for _ in range(2):
                    with torch.autocast("cuda", dtype=BF16):
                        F.linear(F.linear(x, trained), frozen)

    once, each = 2 * 8 * 4, 2 * 16 * 8
    assert casts(step, trained, frozen, x) == [once, each, each, once, each, each]


def test_a_switched_off_region_casts_nothing() -> None:
    x = torch.empty(4, 4, device="meta")
    with autocast_on_meta(), torch.autocast("cuda", dtype=BF16):
        with torch.autocast("meta", enabled=False):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == BF16
    assert (x @ x).dtype == torch.float32


def test_recomputation_casts_its_weights_again_and_drops_them_when_it_ends() -> None:
    first, second = weight(4, 4), weight(4, 4)
    x = torch.empty(2, 4, dtype=BF16, device="meta", requires_grad=True)

    def block(y: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(y, first), second)

    def step(enter: Callable[[Any], None]) -> None:
        with torch.autocast("cuda", dtype=BF16):
            y = checkpoint(block, checkpoint(block, x, use_reentrant=False), use_reentrant=False)
        enter("backward")
        y.sum().backward()

    recording = record_events(step, existing=iter((first, second, x)))
    to_half = [
        t.phase for t in recording.tokens if isinstance(t, Alloc) and t.op == "_to_copy" and t.nbytes == 32
    ]
    assert to_half == ["forward"] * 2 + ["backward"] * 4


def test_attention_is_cast_as_a_whole() -> None:
    query, key, value = (torch.empty(1, 2, 128, 64, device="meta") for _ in range(3))

    def step() -> torch.Tensor:
        with torch.autocast("cuda", dtype=BF16):
            output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        assert output.dtype == BF16
        return output

    assert casts(step, query, key, value) == [2 * 2 * 128 * 64] * 3


def test_autograd_functions_get_their_inputs_cast() -> None:
    seen = []

    class Function(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
            seen.append((x.dtype, (x @ x).dtype))
            return x

    with autocast_on_meta(), torch.autocast("cuda", dtype=BF16):
        Function.apply(torch.empty(2, 2, dtype=BF16, device="meta"))

    assert seen == [(torch.float32, torch.float32)]


def test_everything_is_put_back() -> None:
    def replaced() -> list[Any]:
        return [torch.autocast.__init__, torch.is_autocast_enabled, torch.clear_autocast_cache,
                F.scaled_dot_product_attention, torch.amp.is_autocast_available]  # fmt: skip

    before = replaced()
    with autocast_on_meta():
        assert not any(x is y for x, y in zip(replaced(), before, strict=True))
    assert replaced() == before
    x = torch.empty(4, 4, device="meta")
    with torch.autocast("cpu", dtype=BF16):
        assert (x @ x).dtype == torch.float32


def test_every_policy_has_ops() -> None:
    assert set(CUDA.cast_lists().values()) == set(CastPolicy)
