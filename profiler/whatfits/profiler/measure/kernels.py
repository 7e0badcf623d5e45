"""The kernels that a training step is made of, each with its sizes, its work and its bytes.

FLOPs count a multiply and an add as two; bytes count each tensor once, read or written.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  (torch's own spelling)
from torch import Tensor, nn

__all__ = ["Kernel", "kernels_of"]

Call = Callable[[], object]
OnTwo = Callable[[Tensor, Tensor], object]

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One operation at one size."""

    name: str
    shape: dict[str, int]
    dtype: str
    prepare: Callable[[str], Call]
    """Makes its tensors on a device and returns what is timed."""
    flops: float | None = None
    nbytes: int | None = None
    is_collective: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What is timed on one kind of device."""

    tokens: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]
    attention: tuple[tuple[int, int, int, int, int], ...]
    """Batch, sequence, query heads, key and value heads, head dim."""
    numels: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]
    parameter_lists: tuple[tuple[int, int], ...]
    """Tensors and elements of each."""
    matrices: tuple[tuple[int, int], ...]
    messages: tuple[int, ...]
    """Elements of a collective's tensor."""


_ON_GPU = _Sizes(
    tokens=(512, 2048, 4096, 8192),
    widths=(
        (1024, 1024),
        (1024, 2736),
        (2048, 2048),
        (2048, 5461),
        (4096, 4096),
        (4096, 11008),
        (4096, 32000),
    ),
    attention=((16, 512, 8, 8, 64), (4, 1024, 16, 16, 64), (1, 2048, 32, 32, 128), (1, 4096, 32, 8, 128)),
    numels=(2**16, 2**20, 2**24, 2**27),
    rows=((2048, 4096), (8192, 1024), (4096, 32000)),
    parameter_lists=((75, 2**18), (219, 2**21), (291, 2**22)),
    matrices=((512, 1376), (1024, 2736), (2048, 2048)),
    messages=(2**16, 2**20, 2**24, 2**27),
)
_ON_CPU = _Sizes(
    tokens=(16,),
    widths=((32, 64),),
    attention=((1, 16, 4, 2, 8),),
    numels=(1000,),
    rows=((16, 64),),
    parameter_lists=((3, 64),),
    matrices=((24, 32),),
    messages=(1000,),
)


def kernels_of(device: str, num_ranks: int = 1) -> Iterator[Kernel]:
    """Every kernel for a device, collectives where there are several ranks."""
    sizes = _ON_CPU if device == "cpu" else _ON_GPU
    parts = (
        _products(sizes),
        _attention(sizes),
        _memory_bound(sizes),
        _optimizers(sizes),
        _factorisations(sizes),
    )
    yield from chain(*parts, _collectives(sizes, num_ranks) if num_ranks > 1 else ())


def _random(device: str, dtype: str, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(_DTYPES[dtype])


def _size(dtype: str) -> int:
    return _DTYPES[dtype].itemsize


def _products(sizes: _Sizes) -> Iterator[Kernel]:
    """A linear layer's forward product, and that of its weight's gradient. FLOPs: 2 m k n."""

    def forward(device: str, *, m: int, k: int, n: int, dtype: str) -> Call:
        x, weight = _random(device, dtype, m, k), _random(device, dtype, n, k)
        return lambda: x @ weight.T

    def gradient(device: str, *, m: int, k: int, n: int, dtype: str) -> Call:
        x, upstream = _random(device, dtype, m, k), _random(device, dtype, m, n)
        return lambda: upstream.T @ x

    for m in sizes.tokens:
        for k, n in sizes.widths:
            for dtype in ("bf16", "fp32"):
                for name, prepare in (("mm", forward), ("mm_grad_weight", gradient)):
                    yield Kernel(
                        name=name,
                        shape={"m": m, "k": k, "n": n},
                        dtype=dtype,
                        prepare=partial(prepare, m=m, k=k, n=n, dtype=dtype),
                        flops=2.0 * m * k * n,
                        nbytes=(m * k + k * n + m * n) * _size(dtype),
                    )


def _attention(sizes: _Sizes) -> Iterator[Kernel]:
    """Causal attention with the kernel that SDPA chooses.

    FLOPs: forward 2 b a s^2 d, half of the two products; backward 2.5 times that.
    Source: FlashAttention-2, arXiv:2307.08691 section 4.1.
    """

    def prepare(device: str, *, sizes: tuple[int, int, int, int, int], backward: bool) -> Call:
        b, s, a, kv, d = sizes
        q = _random(device, "bf16", b, a, s, d).requires_grad_()
        k, v = (_random(device, "bf16", b, kv, s, d).requires_grad_() for _ in range(2))
        forward = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=kv != a)
        if not backward:
            return forward
        out = forward()
        upstream = torch.ones_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), upstream, retain_graph=True)

    for b, s, a, kv, d in sizes.attention:
        flops, nbytes = 2.0 * b * a * s * s * d, 2 * b * s * d * (a + kv) * _size("bf16")
        for backward in (False, True):
            yield Kernel(
                name="attention_backward" if backward else "attention_forward",
                shape={"b": b, "s": s, "a": a, "kv": kv, "d": d},
                dtype="bf16",
                prepare=partial(prepare, sizes=(b, s, a, kv, d), backward=backward),
                flops=flops * (2.5 if backward else 1.0),
                # Backward reads what forward read and wrote, and the upstream gradient, and writes three gradients.
                nbytes=nbytes * 2 if backward else nbytes,
            )


def _memory_bound(sizes: _Sizes) -> Iterator[Kernel]:
    """Passes over memory; the number beside a name is that of tensors read and written."""
    elementwise: tuple[tuple[str, int, OnTwo], ...] = (
        ("copy", 2, lambda x, y: y.copy_(x)),
        ("add", 3, torch.add),
        ("silu", 2, lambda x, _: F.silu(x)),
        ("zero", 1, lambda x, _: x.zero_()),
    )
    rowwise: tuple[tuple[str, int, OnTwo], ...] = (
        ("softmax", 2, lambda x, _: F.softmax(x, -1)),
        ("mean_of_squares", 3, lambda x, _: x.pow(2).mean(-1, keepdim=True)),
        # Logarithms of the softmax are written, and read again for the loss.
        ("cross_entropy", 2, lambda x, _: F.cross_entropy(x, torch.zeros_like(x[:, 0], dtype=torch.long))),
    )
    for numel in sizes.numels:
        for dtype in ("bf16", "fp32"):
            for name, passes, function in elementwise:
                yield _pass(name, {"n": numel}, dtype, function, passes)
    for rows, columns in sizes.rows:
        for name, passes, function in rowwise:
            yield _pass(name, {"rows": rows, "columns": columns}, "fp32", function, passes)


def _pass(name: str, shape: dict[str, int], dtype: str, function: OnTwo, passes: int) -> Kernel:
    def prepare(device: str) -> Call:
        x, y = (_random(device, dtype, *shape.values()) for _ in range(2))
        return lambda: function(x, y)

    nbytes = passes * math.prod(shape.values()) * _size(dtype)
    return Kernel(name=name, shape=shape, dtype=dtype, prepare=prepare, nbytes=nbytes)


def _optimizers(sizes: _Sizes) -> Iterator[Kernel]:
    """Steps of torch's optimizers. Bytes: SGD reads parameter and gradient and writes one; AdamW has two states more."""
    made: tuple[tuple[str, int, Callable[[list[nn.Parameter]], torch.optim.Optimizer]], ...] = (
        ("sgd", 3, lambda p: torch.optim.SGD(p, lr=1e-3)),
        ("adamw_for_loop", 7, lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False)),
        ("adamw_foreach", 7, lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True)),
        ("adamw_fused", 7, lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True)),
    )

    def prepare(
        device: str,
        *,
        build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        count: int,
        numel: int,
        dtype: str,
    ) -> Call:
        parameters = [nn.Parameter(_random(device, dtype, numel)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return build(parameters).step

    for count, numel in sizes.parameter_lists:
        for name, passes, build in made:
            for dtype in ("bf16", "fp32"):
                yield Kernel(
                    name=name,
                    shape={"count": count, "n": numel},
                    dtype=dtype,
                    prepare=partial(prepare, build=build, count=count, numel=numel, dtype=dtype),
                    nbytes=passes * count * numel * _size(dtype),
                )


def _factorisations(sizes: _Sizes) -> Iterator[Kernel]:
    """What low-rank methods refresh their projections with; the work of an iterative one depends on the matrix."""
    functions: tuple[tuple[str, Callable[[Tensor], object]], ...] = (
        ("svd", partial(torch.linalg.svd, full_matrices=False)),
        ("qr", torch.linalg.qr),
        ("gram_eigh", lambda x: torch.linalg.eigh(x @ x.T)),
    )
    for m, n in sizes.matrices:
        for name, function in functions:

            def prepare(
                device: str, *, m: int = m, n: int = n, function: Callable[[Tensor], object] = function
            ) -> Call:
                x = _random(device, "fp32", m, n)
                return lambda: function(x)

            yield Kernel(name=name, shape={"m": m, "n": n}, dtype="fp32", prepare=prepare)


def _collectives(sizes: _Sizes, num_ranks: int) -> Iterator[Kernel]:
    """What data parallelism sends; bytes are those of the whole message on one rank."""

    def all_reduce(whole: Tensor, _: Tensor) -> object:
        return dist.all_reduce(whole)

    def reduce_scatter(whole: Tensor, part: Tensor) -> object:
        return dist.reduce_scatter_tensor(part, whole)

    def prepare(device: str, *, function: OnTwo, numel: int) -> Call:
        whole, part = _random(device, "bf16", numel), _random(device, "bf16", numel // num_ranks)
        return lambda: function(whole, part)

    functions = (
        ("all_reduce", all_reduce),
        ("all_gather", dist.all_gather_into_tensor),
        ("reduce_scatter", reduce_scatter),
    )
    for message in sizes.messages:
        numel = message // num_ranks * num_ranks
        for name, function in functions:
            yield Kernel(
                name=name,
                shape={"ranks": num_ranks, "n": numel},
                dtype="bf16",
                prepare=partial(prepare, function=function, numel=numel),
                nbytes=numel * _size("bf16"),
                is_collective=True,
            )
