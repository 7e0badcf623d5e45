"""Single operations whose kernels allocate on the device beyond their outputs: each warmed up once, then recorded."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from recorder import DEVICE, ON_GPU, Run
from torch.nn.attention import SDPBackend, sdpa_kernel

warnings.filterwarnings("ignore")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
Call = Callable[[], Any]


def _t(*shape: int, dtype: str = "fp32", grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32).to(DTYPES[dtype]).requires_grad_(grad)


def recorded(prepare: Callable[[], tuple[Any, Call]]) -> Callable[[Run], None]:
    """Warm the operation up, then record: 'prepare' (inputs), 'call' (the operation), 'drop' (its results)."""

    def run_case(run: Run) -> None:
        kept, call = prepare()
        out = call()
        del kept, call, out
        if ON_GPU:
            torch.cuda.synchronize()
        run.mark("prepare")
        kept, call = prepare()
        run.mark("call")
        out = call()
        run.mark("drop")
        del out
        run.mark("inputs")
        del kept, call

    return run_case


def backward_of(
    forward: Callable[[], tuple[list[torch.Tensor], torch.Tensor]],
) -> Callable[[], tuple[Any, Call]]:
    """Inputs and a call of the backward pass alone, with the output's gradient given."""

    def prepare() -> tuple[Any, Call]:
        leaves, out = forward()
        gradient = torch.ones_like(out)
        return (leaves, out, gradient), lambda: torch.autograd.grad(out, leaves, gradient)

    return prepare


def _both(
    name: str, spec: dict[str, Any], forward: Callable[[], tuple[list[torch.Tensor], torch.Tensor]]
) -> Iterator[tuple[dict[str, Any], Any]]:
    def prepare() -> tuple[Any, Call]:
        return None, forward

    yield {"op": name, "pass": "forward", **spec}, recorded(prepare)
    yield {"op": name, "pass": "backward", **spec}, recorded(backward_of(forward))


def _embedding(n: int, d: int, v: int, dtype: str, ids: torch.dtype) -> Any:
    def forward() -> tuple[list[torch.Tensor], torch.Tensor]:
        w = _t(v, d, dtype=dtype, grad=True)
        return [w], F.embedding(torch.randint(v, (n,), device=DEVICE, dtype=ids), w)

    return backward_of(forward)


def _indexed(n: int, d: int, v: int, dtype: str, ids: torch.dtype) -> Any:
    def forward() -> tuple[list[torch.Tensor], torch.Tensor]:
        w = _t(v, d, dtype=dtype, grad=True)
        return [w], w[torch.randint(v, (n,), device=DEVICE, dtype=ids)]

    return backward_of(forward)


def cases(small: bool) -> Iterator[tuple[dict[str, Any], Callable[[Run], None]]]:
    """Every operation, smaller where a CPU only tries the code."""
    yield from _sorts(small)
    yield from _reductions(small)
    yield from _attention(small)
    yield from _products(small)
    yield from _norms_and_losses(small)
    yield from _linalg(small)
    yield from _various(small)


def _sorts(small: bool) -> Iterator[Any]:
    counts = [
        1,
        100,
        256,
        512,
        1000,
        1024,
        2000,
        2048,
        2049,
        3072,
        3073,
        4096,
        5000,
        6144,
        8192,
        10000,
        12288,
        16384,
        20000,
        32768,
        65536,
        131072,
        262144,
    ]
    counts = counts[:3] if small else counts
    for n in counts:
        for v, d in ((32000, 512), (128256, 64)):
            for dtype in ("bf16", "fp32"):
                if v > 32000 and dtype == "fp32":
                    continue
                yield (
                    {"op": "embedding_backward", "n": n, "v": v, "d": d, "dtype": dtype},
                    recorded(_embedding(n, d, v, dtype, torch.int64)),
                )
        yield (
            {"op": "embedding_backward", "n": n, "v": 32000, "d": 512, "dtype": "bf16", "ids": "int32"},
            recorded(_embedding(n, 512, 32000, "bf16", torch.int32)),
        )
        yield (
            {"op": "index_backward", "n": n, "v": 32000, "d": 64, "dtype": "fp32"},
            recorded(_indexed(n, 64, 32000, "fp32", torch.int64)),
        )
        yield {"op": "sort", "n": n}, recorded(lambda n=n: ((x := _t(n)), lambda: torch.sort(x)))
        yield (
            {"op": "nonzero", "n": n},
            recorded(
                lambda n=n: ((x := torch.ones(n, device=DEVICE, dtype=torch.bool)), lambda: torch.nonzero(x))
            ),
        )
        yield {"op": "cumsum", "n": n}, recorded(lambda n=n: ((x := _t(n)), lambda: torch.cumsum(x, 0)))
        yield {"op": "topk", "n": n}, recorded(lambda n=n: ((x := _t(max(n, 64))), lambda: torch.topk(x, 8)))
        yield (
            {"op": "topk_rows", "n": n, "columns": 64},
            recorded(lambda n=n: ((x := _t(n, 64)), lambda: torch.topk(x, 8))),
        )
        yield (
            {"op": "argsort_stable", "n": n},
            recorded(
                lambda n=n: (
                    (x := torch.randint(64, (n,), device=DEVICE)),
                    lambda: torch.argsort(x, stable=True),
                )
            ),
        )
        yield (
            {"op": "bincount", "n": n},
            recorded(
                lambda n=n: (
                    (x := torch.randint(64, (n,), device=DEVICE)),
                    lambda: torch.bincount(x, minlength=64),
                )
            ),
        )
        yield (
            {"op": "randperm", "n": n},
            recorded(lambda n=n: (None, lambda: torch.randperm(n, device=DEVICE))),
        )
        yield (
            {"op": "unique", "n": n},
            recorded(lambda n=n: ((x := torch.randint(64, (n,), device=DEVICE)), lambda: torch.unique(x))),
        )
        yield {"op": "masked_select", "n": n}, recorded(lambda n=n: ((x := _t(n), m := x > 0), lambda: x[m]))


def _reductions(small: bool) -> Iterator[Any]:
    rows = [64, 500] if small else [1, 16, 64, 256, 500, 1024, 2048, 4096, 8192, 10000, 16384, 32768]
    widths = [64] if small else [64, 100, 512, 768, 1024, 1376, 2048, 4096, 5461, 11008, 32000]
    for n in rows:
        for o in widths:
            if n * o > 2**28:
                continue
            for dtype in ("fp32", "bf16"):
                yield (
                    {"op": "sum_rows", "n": n, "o": o, "dtype": dtype},
                    recorded(lambda n=n, o=o, dtype=dtype: ((x := _t(n, o, dtype=dtype)), lambda: x.sum(0))),
                )
            yield (
                {"op": "sum_rows_batched", "b": 2, "n": n, "o": o, "dtype": "bf16"},
                recorded(
                    lambda n=n, o=o: ((x := _t(2, n, o, dtype="bf16")), lambda: x.sum((0, 1), keepdim=True))
                ),
            )
            yield (
                {"op": "mean_columns", "n": n, "o": o, "dtype": "fp32"},
                recorded(lambda n=n, o=o: ((x := _t(n, o)), lambda: x.mean(-1, keepdim=True))),
            )
            yield (
                {"op": "sum_columns", "n": n, "o": o, "dtype": "bf16"},
                recorded(lambda n=n, o=o: ((x := _t(n, o, dtype="bf16")), lambda: x.sum(-1))),
            )
            yield (
                {"op": "sum_all", "n": n, "o": o, "dtype": "fp32"},
                recorded(lambda n=n, o=o: ((x := _t(n, o)), lambda: x.sum())),
            )
            yield (
                {"op": "norm_all", "n": n, "o": o, "dtype": "bf16"},
                recorded(lambda n=n, o=o: ((x := _t(n, o, dtype="bf16")), lambda: x.norm())),
            )
            yield (
                {"op": "norm_rows", "n": n, "o": o, "dtype": "fp32"},
                recorded(lambda n=n, o=o: ((x := _t(n, o)), lambda: x.norm(dim=0))),
            )
            yield (
                {"op": "amax_rows", "n": n, "o": o, "dtype": "fp32"},
                recorded(lambda n=n, o=o: ((x := _t(n, o)), lambda: x.amax(0))),
            )
            yield (
                {"op": "max_rows", "n": n, "o": o, "dtype": "fp32"},
                recorded(lambda n=n, o=o: ((x := _t(n, o)), lambda: x.max(0))),
            )
    for n in [1000] if small else [1000, 65536, 65537, 2**20, 2**22, 2**24 + 1, 2**26]:
        for count in (1, 7):
            yield (
                {"op": "foreach_norm", "n": n, "count": count},
                recorded(
                    lambda n=n, count=count: (
                        (x := [_t(n, dtype="bf16") for _ in range(count)]),
                        lambda: torch._foreach_norm(x),
                    )
                ),
            )
        yield {"op": "isfinite_all", "n": n}, recorded(lambda n=n: ((x := _t(n)), lambda: x.isfinite().all()))


_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def _attention(small: bool) -> Iterator[Any]:
    shapes = (
        [(1, 33, 2, 2, 64)]
        if small
        else [
            (1, 256, 8, 8, 64),
            (2, 256, 8, 8, 64),
            (2, 500, 8, 8, 64),
            (4, 1000, 8, 2, 64),
            (1, 2048, 16, 16, 128),
            (1, 2048, 32, 8, 64),
            (2, 4096, 8, 8, 128),
            (1, 1777, 8, 4, 96),
            (8, 128, 12, 12, 64),
            (1, 2048, 8, 8, 256),
            (1, 300, 8, 8, 80),
            (1, 16, 4, 4, 64),
            (1, 8192, 4, 1, 128),
            (1, 640, 16, 16, 72),
        ]
    )
    for shape in shapes:
        for kernel, backend in _KERNELS.items():
            for dtype in ("bf16", "fp32"):
                for mode in ("causal", "full", "mask", "mask_bias", "dropout"):
                    if (kernel in ("flash", "cudnn") and dtype == "fp32") or (
                        kernel == "flash" and mode.startswith("mask")
                    ):
                        continue
                    yield from _both(
                        "sdpa",
                        {
                            "kernel": kernel,
                            "b": shape[0],
                            "s": shape[1],
                            "heads": shape[2],
                            "kv": shape[3],
                            "d": shape[4],
                            "dtype": dtype,
                            "mode": mode,
                        },
                        _sdpa(shape, backend, dtype, mode),
                    )
        yield from _both(
            "sdpa",
            {
                "kernel": "chosen",
                "b": shape[0],
                "s": shape[1],
                "heads": shape[2],
                "kv": shape[3],
                "d": shape[4],
                "dtype": "bf16",
                "mode": "mask",
            },
            _sdpa(shape, None, "bf16", "mask"),
        )


def _sdpa(shape: tuple[int, ...], backend: Any, dtype: str, mode: str) -> Any:
    b, s, heads, kv, d = shape

    def forward() -> tuple[list[torch.Tensor], torch.Tensor]:
        q = _t(b, s, heads, d, dtype=dtype, grad=True)
        k, v = (_t(b, s, kv, d, dtype=dtype, grad=True) for _ in range(2))
        mask = None
        if mode == "mask":
            mask = torch.ones(b, 1, s, s, dtype=torch.bool, device=DEVICE).tril()
        elif mode == "mask_bias":
            mask = _t(b, 1, s, s, dtype=dtype)
        arguments = {
            "attn_mask": mask,
            "is_causal": mode == "causal",
            "dropout_p": 0.1 if mode == "dropout" else 0.0,
            "enable_gqa": kv != heads,
        }
        if backend == SDPBackend.EFFICIENT_ATTENTION and kv != heads:
            arguments["enable_gqa"] = False
            k2, v2 = (x.repeat_interleave(heads // kv, 2) for x in (k, v))
        else:
            k2, v2 = k, v
        call = lambda: F.scaled_dot_product_attention(
            q.transpose(1, 2), k2.transpose(1, 2), v2.transpose(1, 2), **arguments
        )
        if backend is None:
            return [q, k, v], call()
        with sdpa_kernel(backend):
            return [q, k, v], call()

    return forward


def _products(small: bool) -> Iterator[Any]:
    for dtype in ("bf16", "fp32"):
        for m, k, n in ((64, 64, 64), (2048, 512, 1376), (4096, 1024, 4096), (500, 511, 1377)):
            for bias in (False, True):

                def forward(dtype: str = dtype, m: int = m, k: int = k, n: int = n, bias: bool = bias) -> Any:
                    x, w = _t(m, k, dtype=dtype, grad=True), _t(n, k, dtype=dtype, grad=True)
                    leaves = [x, w, _t(n, dtype=dtype, grad=True)] if bias else [x, w]
                    return leaves, F.linear(*leaves)

                yield from _both("linear", {"m": m, "k": k, "n": n, "bias": bias, "dtype": dtype}, forward)
        yield (
            {"op": "bmm_expanded", "dtype": dtype},
            recorded(
                lambda dtype=dtype: (
                    (a := _t(1, 64, 32, dtype=dtype).expand(4, 64, 32), c := _t(4, 32, 64, dtype=dtype)),
                    lambda: torch.bmm(a, c),
                )
            ),
        )
        yield (
            {"op": "bmm_transposed", "dtype": dtype},
            recorded(
                lambda dtype=dtype: (
                    (
                        a := _t(4, 64, 8, 32, dtype=dtype).transpose(1, 2),
                        c := _t(4, 64, 8, 32, dtype=dtype).permute(0, 2, 3, 1),
                    ),
                    lambda: torch.matmul(a, c),
                )
            ),
        )
        if hasattr(torch, "_grouped_mm") and dtype == "bf16":
            for groups in (8, 64):
                yield (
                    {"op": "grouped_mm", "groups": groups, "m": 1024, "k": 512, "n": 256},
                    recorded(
                        lambda groups=groups: (
                            (
                                x := _t(1024, 512, dtype="bf16"),
                                w := _t(groups, 512, 256, dtype="bf16"),
                                o := torch.arange(1, groups + 1, device=DEVICE, dtype=torch.int32)
                                * (1024 // groups),
                            ),
                            lambda: torch._grouped_mm(x, w, offs=o),
                        )
                    ),
                )


def _norms_and_losses(small: bool) -> Iterator[Any]:
    for n, h in (
        ((64, 64),)
        if small
        else ((64, 512), (2048, 512), (2000, 768), (4096, 1024), (8192, 4096), (16384, 1024))
    ):
        for dtype in ("bf16", "fp32"):

            def layer(n: int = n, h: int = h, dtype: str = dtype) -> Any:
                x, w, c = (
                    _t(n, h, dtype=dtype, grad=True),
                    _t(h, dtype=dtype, grad=True),
                    _t(h, dtype=dtype, grad=True),
                )
                return [x, w, c], F.layer_norm(x, (h,), w, c)

            def rms(n: int = n, h: int = h, dtype: str = dtype) -> Any:
                x, w = _t(n, h, dtype=dtype, grad=True), _t(h, dtype=dtype, grad=True)
                return [x, w], F.rms_norm(x, (h,), w)

            def dropout(n: int = n, h: int = h, dtype: str = dtype) -> Any:
                x = _t(n, h, dtype=dtype, grad=True)
                return [x], F.dropout(x, 0.1)

            def loss(n: int = n, dtype: str = dtype) -> Any:
                x = _t(n, 32000 if n < 8192 else 1000, dtype=dtype, grad=True)
                return [x], F.cross_entropy(x, torch.randint(1000, (n,), device=DEVICE))

            for name, forward in (
                ("layer_norm", layer),
                ("rms_norm", rms),
                ("dropout", dropout),
                ("cross_entropy", loss),
            ):
                yield from _both(name, {"n": n, "h": h, "dtype": dtype}, forward)
    for c, size, k, stride in ((3, 224, 16, 16), (64, 56, 3, 1), (3, 224, 7, 2)):

        def conv(c: int = c, size: int = size, k: int = k, stride: int = stride) -> Any:
            x, w = _t(2, c, size, size, dtype="bf16", grad=True), _t(64, c, k, k, dtype="bf16", grad=True)
            return [x, w], F.conv2d(x, w, stride=stride, padding=0 if k == 16 else k // 2)

        yield from _both("conv2d", {"c": c, "size": size, "k": k, "stride": stride}, conv)


def _linalg(small: bool) -> Iterator[Any]:
    shapes = (
        ((32, 48),)
        if small
        else ((512, 512), (512, 1376), (1376, 512), (768, 2048), (1024, 1024), (2048, 2048), (2048, 5461))
    )
    for m, n in shapes:
        yield (
            {"op": "svd", "m": m, "n": n},
            recorded(lambda m=m, n=n: ((x := _t(m, n)), lambda: torch.linalg.svd(x, full_matrices=False))),
        )
        yield (
            {"op": "qr", "m": m, "n": n},
            recorded(lambda m=m, n=n: ((x := _t(m, n)), lambda: torch.linalg.qr(x))),
        )
        yield (
            {"op": "svd_lowrank", "m": m, "n": n, "q": 16},
            recorded(lambda m=m, n=n: ((x := _t(m, n)), lambda: torch.svd_lowrank(x, q=16))),
        )
        if m == n:
            yield (
                {"op": "eigh", "n": n},
                recorded(lambda n=n: ((x := _t(n, n)), lambda: torch.linalg.eigh(x @ x.T))),
            )
            yield (
                {"op": "cholesky", "n": n},
                recorded(
                    lambda n=n: (
                        (x := _t(n, n)),
                        lambda: torch.linalg.cholesky(x @ x.T + n * torch.eye(n, device=DEVICE)),
                    )
                ),
            )
            yield {"op": "inv", "n": n}, recorded(lambda n=n: ((x := _t(n, n)), lambda: torch.linalg.inv(x)))
    for driver in ("gesvd", "gesvdj", "gesvda"):
        for m, n in shapes[1:4]:
            yield (
                {"op": "svd", "driver": driver, "m": m, "n": n},
                recorded(
                    lambda m=m, n=n, driver=driver: (
                        (x := _t(m, n)),
                        lambda: torch.linalg.svd(x, full_matrices=False, driver=driver),
                    )
                ),
            )


def _various(small: bool) -> Iterator[Any]:
    for n in (64,) if small else (64, 2048, 16384):

        def gather(n: int = n) -> Any:
            x = _t(n, 64, grad=True)
            return [x], x.gather(1, torch.randint(64, (n, 8), device=DEVICE))

        def maximum(n: int = n) -> Any:
            x = _t(n, 64, grad=True)
            return [x], x.max(-1).values

        def selected(n: int = n) -> Any:
            x = _t(n, 64, grad=True)
            return [x], torch.index_select(x, 0, torch.randint(n, (n,), device=DEVICE))

        def softmax(n: int = n) -> Any:
            x = _t(n, 2048, dtype="bf16", grad=True)
            return [x], F.softmax(x, -1, dtype=torch.float32)

        def sorted_rows(n: int = n) -> Any:
            x = _t(n, 64, grad=True)
            return [x], torch.sort(x, -1).values

        for name, forward in (
            ("gather", gather),
            ("max", maximum),
            ("index_select", selected),
            ("softmax", softmax),
            ("sort_rows", sorted_rows),
        ):
            yield from _both(name, {"n": n}, forward)
        yield (
            {"op": "index_add", "n": n},
            recorded(
                lambda n=n: (
                    (x := _t(n, 64), i := torch.randint(n, (n,), device=DEVICE), y := _t(n, 64)),
                    lambda: x.index_add_(0, i, y),
                )
            ),
        )
        yield (
            {"op": "histc", "n": n},
            recorded(
                lambda n=n: (
                    (x := torch.randint(64, (n,), device=DEVICE).float()),
                    lambda: torch.histc(x, 64, 0, 63),
                )
            ),
        )
        yield (
            {"op": "one_hot", "n": n},
            recorded(lambda n=n: ((x := torch.randint(64, (n,), device=DEVICE)), lambda: F.one_hot(x, 64))),
        )
        yield (
            {"op": "multinomial", "n": n},
            recorded(lambda n=n: ((x := torch.rand(4, n, device=DEVICE)), lambda: torch.multinomial(x, 4))),
        )
