"""The kernel that attention takes and what happens to masks and heads before it."""

import pytest
import torch

from whatfits.profiler.trace.attention import SdpaFrontEnd, preferred_kernels
from whatfits.profiler.trace.cuda_differences import device_steps, in_place_on_device
from whatfits.profiler.trace.events import Alloc
from whatfits.profiler.trace.storages import StorageRecorder

ALL = ("cudnn", "flash", "efficient", "math")
OTHERS = ALL[1:]
AMPERE, ADA, TURING = (8, 0), (8, 9), (7, 5)
KERNEL_OPS = {f"_scaled_dot_product_{name}_attention": name for name in ALL[:-1]} | {"_safe_softmax": "math"}


def heads(
    num: int = 4, seq_len: int = 16, dim: int = 64, dtype: torch.dtype = torch.bfloat16, *, grad: bool = True
) -> torch.Tensor:
    return torch.empty(2, num, seq_len, dim, dtype=dtype, device="meta", requires_grad=grad)


def traced(front_end: SdpaFrontEnd, *args: torch.Tensor, **kwargs: object) -> list[tuple[str, int]]:
    recorder = StorageRecorder(
        device_type="meta",
        current_module=lambda: "",
        temporaries=device_steps,
        in_place=in_place_on_device,
        scalar_answer=None,
    )
    with recorder:
        front_end(*args, **kwargs)  # type: ignore[arg-type]  # the names are torch's
    return [(t.op, t.nbytes) for t in recorder.tokens if isinstance(t, Alloc)]


def kernel(front_end: SdpaFrontEnd, *args: torch.Tensor, **kwargs: object) -> str:
    (found,) = {KERNEL_OPS[op] for op, _ in traced(front_end, *args, **kwargs) if op in KERNEL_OPS}
    return found


def test_order_of_preference_follows_the_device() -> None:
    assert preferred_kernels((9, 0)) == preferred_kernels((10, 0)) == ALL
    assert preferred_kernels((8, 0)) == preferred_kernels((8, 9)) == preferred_kernels((12, 0)) == OTHERS


@pytest.mark.parametrize(
    ("kernels", "dtype", "dim", "masked", "expected"),
    [
        (ALL, torch.bfloat16, 64, False, "cudnn"),
        (ALL, torch.bfloat16, 64, True, "cudnn"),
        (ALL, torch.bfloat16, 60, False, "flash"),
        (ALL, torch.float32, 64, False, "efficient"),
        (OTHERS, torch.float16, 64, False, "flash"),
        (OTHERS, torch.bfloat16, 64, True, "efficient"),
        (OTHERS, torch.bfloat16, 60, True, "math"),
        (OTHERS, torch.float32, 60, True, "efficient"),
        (OTHERS, torch.float32, 62, True, "math"),
        (OTHERS, torch.bfloat16, 264, False, "efficient"),
        (("flash", "math"), torch.bfloat16, 64, True, "math"),
    ],
)
def test_first_kernel_that_takes_dtype_heads_and_mask(
    kernels: tuple[str, ...], dtype: torch.dtype, dim: int, masked: bool, expected: str
) -> None:
    query = heads(dim=dim, dtype=dtype)
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool, device="meta") if masked else None

    assert kernel(SdpaFrontEnd(kernels), query, query, query, attn_mask=mask) == expected


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "expected"),
    [
        (TURING, torch.float16, 64, "efficient"),
        (TURING, torch.bfloat16, 64, "math"),
        (AMPERE, torch.bfloat16, 256, "flash"),
        (ADA, torch.bfloat16, 192, "flash"),
        (ADA, torch.bfloat16, 200, "efficient"),
        (ADA, torch.bfloat16, 256, "flash"),
    ],
)
def test_generations_of_gpus_take_different_dtypes_and_heads(
    capability: tuple[int, int], dtype: torch.dtype, dim: int, expected: str
) -> None:
    query = heads(dim=dim, dtype=dtype)

    assert kernel(SdpaFrontEnd(OTHERS, capability), query, query, query) == expected


@pytest.mark.parametrize(
    ("kernels", "expected"), [(ALL, "cudnn"), (OTHERS, "flash"), (("efficient", "math"), "math")]
)
def test_grouped_heads_reach_only_kernels_that_take_them(kernels: tuple[str, ...], expected: str) -> None:
    query, key = heads(8), heads(2)

    assert kernel(SdpaFrontEnd(kernels), query, key, key, enable_gqa=True, is_causal=True) == expected


def test_causal_attention_to_a_longer_sequence_is_not_flashs() -> None:
    query, key = heads(seq_len=16), heads(seq_len=24)

    assert kernel(SdpaFrontEnd(OTHERS), query, key, key, is_causal=True) == "efficient"
    assert kernel(SdpaFrontEnd(OTHERS), query, key, key) == "flash"


def test_arguments_that_no_allowed_kernel_takes_are_refused() -> None:
    query = heads(dim=60, dtype=torch.float32)

    with pytest.raises(NotImplementedError, match=r"none of flash takes torch\.float32 heads of 60"):
        SdpaFrontEnd(("flash",))(query, query, query)


@pytest.mark.parametrize(("seq_len", "padded"), [(16, None), (20, 24)])
def test_a_boolean_mask_is_converted_anew_and_padded_in_memory(seq_len: int, padded: int | None) -> None:
    """Two scalars, the mask in the query's dtype, and a copy whose rows are a multiple of 8 long."""
    query = heads(seq_len=seq_len)
    mask = torch.ones(2, 1, seq_len, seq_len, dtype=torch.bool, device="meta")

    before = traced(SdpaFrontEnd(OTHERS), query, query, query, attn_mask=mask)[: 3 if padded is None else 4]
    copies = [] if padded is None else [("constant_pad_nd", 2 * 2 * seq_len * padded)]
    assert before == [("scalar_tensor", 2), ("scalar_tensor", 2), ("where", 2 * 2 * seq_len**2), *copies]


def test_a_mask_of_numbers_is_used_as_it_is() -> None:
    query = heads()
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bfloat16, device="meta")

    ops = {op for op, _ in traced(SdpaFrontEnd(OTHERS), query, query, query, attn_mask=mask)}
    assert "_scaled_dot_product_efficient_attention" in ops
    assert not {"where", "scalar_tensor", "constant_pad_nd"} & ops


def test_softmax_sums_are_kept_for_a_backward_only() -> None:
    trained, frozen = heads(), heads(grad=False)
    output, sums, seeds, workspace = 2 * 4 * 16 * 64 * 2, 2 * 4 * 16 * 4, [8, 8], 256

    def sizes(query: torch.Tensor) -> list[int]:
        return [n for _, n in traced(SdpaFrontEnd(ALL), query, query, query)]

    assert sizes(trained) == [*seeds, output, sums, workspace]
    assert sizes(frozen) == [*seeds, output, workspace]


@pytest.mark.parametrize("head_dim", [32, 33, 36])
def test_heads_come_back_in_their_own_size(head_dim: int) -> None:
    query = heads(dim=head_dim)

    assert SdpaFrontEnd()(query, query, query, is_causal=True).shape == (2, 4, 16, head_dim)
