"""What attention kernels and the softmax allocate beside their outputs."""

from typing import Any

from whatfits.estimator.profile.formulas import round_up
from whatfits.profiler.trace.memory_steps import Arguments, free, output, scratch, take
from whatfits.profiler.trace.storages import DeviceStep

__all__ = [
    "cudnn_backward",
    "cudnn_forward",
    "efficient_backward",
    "efficient_forward",
    "flash_backward",
    "flash_forward",
    "safe_softmax",
    "softmax_backward",
]

_ONE_PASS_HEAD = 128


def _padded_head(head_dim: int) -> int:
    return int(round_up(head_dim, 32 if head_dim <= 128 else 64))


def flash_forward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Splits n: softmax sums 4 n b a s and outputs 4 n b a s d32 before the seeds; with dropout the seed is made twice.

    Source: flash_api.cpp, mha_fwd and set_params_splitkv.
    """
    batch, heads, seq_len, head_dim = args["query"].shape
    if args["dropout_p"]:
        return [output(0), output(1), take(16), output(7), output(6)]
    size = (batch, heads, seq_len, head_dim)
    split = [scratch("flash_splits", *size, 4), scratch("flash_splits", *size, 4 * _padded_head(head_dim))]
    return [output(0), output(1), *split, output(6), output(7), free(2), free(3)]


def flash_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """softmax_d = 4 b a s128; dq_accum = 4 b s128 a d32; grouped heads: dk = dv = e b s_k a d, freed in reverse.

    s128 = s rounded up to 128; d32 = d rounded up to 32 (64 above 128).

    Source: flash_api.cpp, mha_bwd. Assumes: the non-deterministic kernel.
    """
    query, key = args["query"], args["key"]
    batch, heads, seq_len, head_dim = query.shape
    rows = 4 * batch * heads
    steps = [
        scratch("padded", seq_len, 128, rows),
        scratch("padded", seq_len, 128, rows * _padded_head(head_dim)),
    ]
    if key.shape[1] != heads:
        steps += [take(query.element_size() * batch * key.shape[2] * heads * head_dim)] * 2
    return steps


def efficient_forward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Seed and offset lie on the host; outputs in half precision of heads above 128 are summed in fp32.

    Source: mem_eff_attention/kernel_forward.h, kNeedsOutputAccumulatorBuffer.
    """
    query, width = args["query"], args["value"].shape[-1]
    outside = [DeviceStep("absent", 2), DeviceStep("absent", 3)]
    if query.element_size() == 4:
        return outside
    sums = 4 * query.shape[:3].numel() * width * (width > _ONE_PASS_HEAD)
    return [*outside, output(0), output(1), take(sums)]


def efficient_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Half precision: delta = 4 b a s, workspace. fp32: the product grad x out, its sum, the sum transposed, workspace.

    Source: attention_backward.cu, _efficient_attention_backward.
    """
    query = args["query"]
    batch, heads, seq_len, head_dim = query.shape
    delta = take(4 * batch * heads * seq_len)
    workspace = scratch("efficient", batch, heads, seq_len, head_dim, query.element_size())
    if query.element_size() == 2:
        return [delta, workspace, free(0), free(1)]
    product = take(4 * batch * heads * seq_len * args["value"].shape[-1])
    return [product, delta, delta, free(1), free(0), workspace, free(2), free(5)]


def cudnn_forward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """Seed and offset come first; softmax sums only for a backward; the plan's workspace is 256 bytes."""
    sums = output(1) if args["compute_log_sumexp"] else DeviceStep("absent", 1)
    return [output(6), output(7), output(0), sums, take(256)]


def cudnn_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    query, key = args["query"], args["key"]
    batch, heads, seq_len, head_dim = query.shape
    return [scratch("cudnn", batch, heads, key.shape[1], seq_len, head_dim)]


def safe_softmax(args: Arguments, result: Any) -> list[DeviceStep]:
    """Which scores are hidden, which rows are all hidden, a zero to put there.

    Source: aten/src/ATen/native/SoftMax.cpp, _safe_softmax.
    """
    scores = result.numel()
    return [
        output(0),
        take(scores),
        take(scores // result.shape[args["dim"]]),
        take(result.element_size()),
    ]


def softmax_backward(args: Arguments, _result: Any) -> list[DeviceStep]:
    """The product of gradient and output. Source: aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out."""
    gradient = args["grad_output"]
    return [output(0), take(gradient.numel() * gradient.element_size())]
