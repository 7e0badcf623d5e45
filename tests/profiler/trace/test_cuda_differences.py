"""The rules that make a trace on `meta` equal a run on a device."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers.masking_utils

from whatfits.profiler.trace import attention, cuda_differences, temporaries
from whatfits.profiler.trace.attention import SdpaFrontEnd
from whatfits.profiler.trace.cuda_differences import (
    DIFFERENCES,
    NOT_MODELLED,
    Difference,
    cuda_semantics,
    in_place_on_device,
)
from whatfits.profiler.trace.events import Alloc
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.storages import StorageRecorder
from whatfits.profiler.trace.training_step import MicroBatchTracer, trace_micro_batch

ROOT = Path(__file__).parents[3]
PACKAGE = "whatfits.profiler.trace"
DEVICE_CODE = re.compile(
    r"aten/src|torch/csrc|\.cuh?\b|(?<!alloc_cpu)\.cpp\b|bitsandbytes 0|Liger-Kernel|autocast_mode\.h"
)
DIMS = {"L": 3, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 4, "d": 24, "V": 701}


def recorder() -> StorageRecorder:
    return StorageRecorder(
        device_type="meta",
        current_module=lambda: "",
        temporaries=lambda *_: [],
        in_place=in_place_on_device,
        scalar_answer=None,
    )


def allocated(seen: StorageRecorder) -> list[tuple[str, int]]:
    return [(t.op, t.nbytes) for t in seen.tokens if isinstance(t, Alloc)]


def test_scratch_lies_in_every_layers_backward() -> None:
    trace = trace_micro_batch(DIMS, StepOptions())

    internal = [
        t.nbytes
        for t in trace.parts["backward"]
        if isinstance(t, Alloc) and "attention" in t.op and t.internal
    ]
    assert internal == [4 * 2 * 4 * 256, 4 * 2 * 4 * 256 * 32] * DIMS["L"]


def test_grouped_heads_reach_the_kernel_unexpanded() -> None:
    trace = trace_micro_batch({**DIMS, "k": 2}, StepOptions())

    ops = {t.op for t in trace.parts["forward"] if isinstance(t, Alloc)}
    assert "_scaled_dot_product_flash_attention" in ops
    assert not {"repeat_interleave", "_scaled_dot_product_attention_math"} & ops


def chosen() -> tuple[object, ...]:
    return (
        F.scaled_dot_product_attention,
        F.dropout,
        F.softmax,
        F.rms_norm,
        torch.tensor,
        vars(transformers.masking_utils)["is_tracing"],
    )


def fail_inside() -> None:
    with cuda_semantics(StepOptions(kernels=("math",))):
        assert chosen()[0] == SdpaFrontEnd(("math",))
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


@pytest.mark.parametrize(
    "select",
    [
        lambda x: x.gather(1, torch.empty(64, 8, dtype=torch.int64, device="meta")),
        lambda x: x.max(-1).values,
        lambda x: x[torch.empty(64, dtype=torch.int64, device="meta")],
    ],
    ids=["gather", "max", "index"],
)
def test_formulas_write_into_their_own_zeros(select: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """One allocation in backward, as recorded on an H100 (benchmarks/gpu_recordings, gather, max and index)."""
    rows = torch.empty(64, 64, device="meta", requires_grad=True)
    seen = recorder()
    with seen:
        picked = select(rows)
        gradient = torch.empty_like(picked)
        seen.tokens.clear()
        seen.phase = "backward"
        picked.backward(gradient)

    assert [nbytes for _, nbytes in allocated(seen) if nbytes == 64 * 64 * 4] == [64 * 64 * 4]


def test_dropout_keeps_a_boolean_mask() -> None:
    seen = recorder()
    with cuda_semantics(), seen:
        dropped = F.dropout(torch.empty(10, 4, device="meta"), 0.1)
        evaluated = F.dropout(dropped, 0.1, training=False)

    assert evaluated is dropped
    assert sorted(n for op, n in allocated(seen) if op == "native_dropout") == [40, 160]


def test_softmax_reads_fp16_and_writes_fp32() -> None:
    seen = recorder()
    with cuda_semantics(), seen:
        kept = [
            F.softmax(torch.empty(3, 5, dtype=dtype, device="meta"), dim=-1, dtype=torch.float32)
            for dtype in (torch.float16, torch.bfloat16)
        ]

    assert len(kept) == 2
    assert allocated(seen) == [
        ("empty", 30),
        ("_softmax", 60),
        ("empty", 30),
        ("_to_copy", 60),
        ("_softmax", 60),
    ]


def test_rms_norm_is_one_kernel_each_way() -> None:
    """Sizes in order as recorded on an H100 (benchmarks/gpu_recordings, rms_norm of 64 rows in bf16)."""
    x, weight = (
        torch.empty(*size, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for size in ((64, 512), (512,))
    )
    seen = recorder()
    with cuda_semantics(), seen:
        output = F.rms_norm(x, (512,), weight)
        forward = allocated(seen)
        gradient = torch.empty_like(output)
        seen.tokens.clear()
        seen.phase = "backward"
        torch.autograd.grad(output, (x, weight), gradient)

    assert [n for _, n in forward] == [65536, 256]
    assert [n for _, n in allocated(seen)] == [65536, 1024]


def test_a_tensor_made_from_values_is_an_allocation() -> None:
    seen = recorder()
    with cuda_semantics(), seen:
        kept = torch.tensor(0.0, device="meta", dtype=torch.bfloat16)

    assert kept.shape == ()
    assert [n for _, n in allocated(seen)] == [2]


def test_transformers_hears_that_nothing_traces() -> None:
    asked = vars(transformers.masking_utils)["is_tracing"]
    traced = torch.empty(2, device="meta")

    with cuda_semantics():
        told = vars(transformers.masking_utils)["is_tracing"](traced)

    assert told is False
    assert vars(transformers.masking_utils)["is_tracing"] is asked


def listed_code() -> set[str]:
    return {f"{PACKAGE}{d.code}" if d.code.startswith(".") else d.code for d in DIFFERENCES}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda d: d.what)
def test_each_difference_has_code_a_source_and_a_test(difference: Difference) -> None:
    module, _, name = difference.code.partition(":")
    path, _, test = difference.test.partition("::")
    functions = {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef)
    }

    assert hasattr(importlib.import_module(module, PACKAGE), name)
    assert test in functions
    assert difference.what
    assert difference.rule
    assert difference.source


def test_no_difference_is_listed_twice() -> None:
    assert max(Counter(d.code for d in DIFFERENCES).values()) == 1
    assert not {d.what for d in DIFFERENCES} & {what for what, _ in NOT_MODELLED}


def test_each_rule_about_an_op_is_listed() -> None:
    """A rule made by another function is listed as that one."""
    rules = {
        f"{rule.__module__}:{rule.__qualname__.partition('.')[0]}" for rule in temporaries._RULES.values()
    }

    assert len(rules) > 15
    assert rules <= listed_code()


def test_each_replaced_function_is_listed() -> None:
    """By the function or class in our code that makes what stands in."""
    replaced = [value for _, _, value in cuda_differences._replacements(StepOptions())]
    makers = {
        f"{x.__module__}:{x.__qualname__.partition('.')[0]}" if hasattr(x, "__qualname__")
        else f"{type(x).__module__}:{type(x).__qualname__}"
        for x in replaced
    }  # fmt: skip

    assert len(makers) >= 6
    assert makers <= listed_code()


def test_each_attention_kernel_is_listed() -> None:
    kernels = [*attention._RUN.values(), *attention._TAKES.values()]
    named = {f"{k.__module__}:{k.__name__}" for k in kernels if k.__name__ != "<lambda>"}

    assert len(named) == 7
    assert named <= listed_code()


def test_each_module_that_follows_a_devices_code_is_listed() -> None:
    """What cites the C++ of torch, or a library's kernels, does so because `meta` does otherwise."""
    package = ROOT / "profiler/whatfits/profiler/trace"
    citing = {path.stem for path in package.glob("*.py") if DEVICE_CODE.search(path.read_text())}

    assert len(citing) > 8
    assert {f"{PACKAGE}.{name}" for name in citing} <= {code.partition(":")[0] for code in listed_code()}


def test_what_is_not_modelled_says_why() -> None:
    assert all(what and why for what, why in NOT_MODELLED)
    assert len(dict(NOT_MODELLED)) == len(NOT_MODELLED)
