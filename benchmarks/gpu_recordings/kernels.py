"""Times of single kernels: matrix products, attention, element-wise passes, optimizer steps, launches. Milliseconds, medians."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from recorder import DEVICE, ON_GPU, Run
from torch.nn.attention import SDPBackend, sdpa_kernel

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}


def timed(call: Callable[[], Any], seconds: float = 0.06) -> dict[str, float]:
    """Median, fastest and slowest of repeated calls, each by CUDA events."""
    if not ON_GPU:
        call()
        return {}
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    count = int(max(5, min(60, 1e3 * seconds / max(start.elapsed_time(stop), 1e-3))))
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)
    ]
    for first, last in pairs:
        first.record()
        call()
        last.record()
    torch.cuda.synchronize()
    ms = sorted(a.elapsed_time(b) for a, b in pairs)
    return {
        "median": round(statistics.median(ms), 5),
        "min": round(ms[0], 5),
        "max": round(ms[-1], 5),
        "count": count,
    }


def _case(
    spec: dict[str, Any], prepare: Callable[[], Callable[[], Any]]
) -> tuple[dict[str, Any], Callable[[Run], None]]:
    def run_case(run: Run) -> None:
        run.mark("timed")
        run.notes |= timed(prepare())

    return spec, run_case


def cases(small: bool) -> Iterator[tuple[dict[str, Any], Callable[[Run], None]]]:
    """Every kernel."""
    r = lambda *shape, dtype="bf16": torch.randn(*shape, device=DEVICE).to(DTYPES[dtype])
    tokens = (16,) if small else (128, 256, 512, 1000, 1024, 2048, 4096, 8192, 16384)
    widths = (
        ((64, 64),)
        if small
        else (
            (512, 512),
            (512, 1376),
            (1376, 512),
            (768, 2048),
            (1024, 2736),
            (2048, 2048),
            (2048, 5461),
            (5461, 2048),
            (2048, 8192),
            (4096, 4096),
            (4096, 11008),
            (11008, 4096),
            (4096, 14336),
            (5120, 13824),
            (8192, 28672),
            (512, 32000),
            (2048, 32000),
            (4096, 32000),
            (4096, 128256),
        )
    )
    for m in tokens:
        for k, n in widths:
            if m * (n + k) > 2**31:
                continue
            for dtype in ("bf16",) if m not in (1024, 4096) else ("bf16", "fp32", "fp16"):
                yield _case(
                    {"kernel": "mm", "m": m, "k": k, "n": n, "dtype": dtype},
                    lambda m=m, k=k, n=n, dtype=dtype: (lambda a, b: lambda: a @ b.T)(
                        r(m, k, dtype=dtype), r(n, k, dtype=dtype)
                    ),
                )
                yield _case(
                    {"kernel": "mm_grad_weight", "m": m, "k": k, "n": n, "dtype": dtype},
                    lambda m=m, k=k, n=n, dtype=dtype: (lambda a, b: lambda: b.T @ a)(
                        r(m, k, dtype=dtype), r(m, n, dtype=dtype)
                    ),
                )
    for b, s, a, kv, d in (
        ((1, 16, 2, 2, 64),)
        if small
        else (
            (16, 512, 8, 8, 64),
            (4, 1024, 16, 16, 64),
            (2, 2048, 32, 32, 64),
            (1, 2048, 32, 32, 128),
            (1, 4096, 32, 8, 128),
            (1, 8192, 32, 8, 128),
            (4, 2048, 32, 8, 128),
            (8, 256, 32, 32, 128),
            (1, 1777, 16, 16, 64),
        )
    ):
        for name, backend in (
            ("flash", SDPBackend.FLASH_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION),
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("math", SDPBackend.MATH),
        ):
            if name == "math" and b * a * s * s > 2**30 or name == "efficient" and kv != a:
                continue
            for direction in ("forward", "backward"):

                def attention(
                    b: int = b,
                    s: int = s,
                    a: int = a,
                    kv: int = kv,
                    d: int = d,
                    backend: Any = backend,
                    direction: str = direction,
                ) -> Callable[[], Any]:
                    q = r(b, a, s, d).requires_grad_()
                    k, v = r(b, kv, s, d).requires_grad_(), r(b, kv, s, d).requires_grad_()

                    def forward() -> torch.Tensor:
                        with sdpa_kernel(backend):
                            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv != a)

                    if direction == "forward":
                        return forward
                    out = forward()
                    gradient = torch.ones_like(out)
                    return lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)

                yield _case(
                    {
                        "kernel": "attention_" + direction,
                        "backend": name,
                        "b": b,
                        "s": s,
                        "a": a,
                        "kv": kv,
                        "d": d,
                    },
                    attention,
                )
    for n in (1000,) if small else (2**10, 2**16, 2**20, 2**22, 2**24, 2**26, 2**28):
        for dtype in ("bf16", "fp32"):
            yield _case(
                {"kernel": "copy", "n": n, "dtype": dtype},
                lambda n=n, dtype=dtype: (lambda x, y: lambda: y.copy_(x))(
                    r(n, dtype=dtype), r(n, dtype=dtype)
                ),
            )
            yield _case(
                {"kernel": "add", "n": n, "dtype": dtype},
                lambda n=n, dtype=dtype: (lambda x, y: lambda: x + y)(r(n, dtype=dtype), r(n, dtype=dtype)),
            )
            yield _case(
                {"kernel": "silu", "n": n, "dtype": dtype},
                lambda n=n, dtype=dtype: (lambda x: lambda: F.silu(x))(r(n, dtype=dtype)),
            )
            yield _case(
                {"kernel": "zero", "n": n, "dtype": dtype},
                lambda n=n, dtype=dtype: (lambda x: lambda: x.zero_())(r(n, dtype=dtype)),
            )
        yield _case({"kernel": "cast", "n": n}, lambda n=n: (lambda x: lambda: x.float())(r(n)))
    for rows, columns in (
        ((16, 64),) if small else ((2048, 512), (4096, 2048), (4096, 4096), (8192, 1024), (16384, 4096))
    ):
        yield _case(
            {"kernel": "mean_last", "rows": rows, "columns": columns},
            lambda rows=rows, columns=columns: (lambda x: lambda: x.pow(2).mean(-1, keepdim=True))(
                r(rows, columns, dtype="fp32")
            ),
        )
        yield _case(
            {"kernel": "softmax", "rows": rows, "columns": columns},
            lambda rows=rows, columns=columns: (lambda x: lambda: F.softmax(x, -1, dtype=torch.float32))(
                r(rows, columns)
            ),
        )
    for rows, v in ((16, 64),) if small else ((2048, 32000), (8192, 32000), (4096, 128256)):
        yield _case(
            {"kernel": "cross_entropy", "rows": rows, "v": v},
            lambda rows=rows, v=v: (lambda x, y: lambda: F.cross_entropy(x, y))(
                r(rows, v, dtype="fp32"), torch.randint(v, (rows,), device=DEVICE)
            ),
        )
    for count, n in (
        ((3, 64),) if small else ((75, 2**18), (110, 2**20), (219, 2**21), (291, 2**22), (291, 2**24))
    ):
        for name in ("sgd", "adamw_for_loop", "adamw_foreach", "adamw_fused"):
            for dtype in ("bf16", "fp32"):
                if n * count * (2 if dtype == "bf16" else 4) > 12e9:
                    continue

                def step(
                    count: int = count, n: int = n, name: str = name, dtype: str = dtype
                ) -> Callable[[], Any]:
                    parameters = [torch.nn.Parameter(r(n, dtype=dtype)) for _ in range(count)]
                    for p in parameters:
                        p.grad = torch.ones_like(p)
                    flags = {
                        "adamw_for_loop": {"foreach": False},
                        "adamw_foreach": {"foreach": True},
                        "adamw_fused": {"fused": True},
                    }
                    made = (
                        torch.optim.SGD(parameters, lr=1e-3)
                        if name == "sgd"
                        else torch.optim.AdamW(parameters, lr=1e-3, **flags[name])
                    )
                    return made.step

                yield _case(
                    {"kernel": "optimizer", "name": name, "count": count, "n": n, "dtype": dtype}, step
                )
    for m, n in (
        ((32, 48),)
        if small
        else ((512, 512), (512, 1376), (768, 2048), (1024, 2736), (2048, 2048), (2048, 5461))
    ):
        for name, function in (
            ("svd", lambda x: torch.linalg.svd(x, full_matrices=False)),
            ("qr", torch.linalg.qr),
            ("svd_lowrank", lambda x: torch.svd_lowrank(x, q=128 if min(x.shape) > 128 else 8)),
            ("gram_eigh", lambda x: torch.linalg.eigh(x @ x.T)),
        ):
            yield _case(
                {"kernel": name, "m": m, "n": n},
                lambda m=m, n=n, function=function: (lambda x: lambda: function(x))(r(m, n, dtype="fp32")),
            )
