"""The recorder sees what the CPU's own allocator reports for the same step run without any dispatch mode."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from whatfits.profiler.trace.cuda_differences import in_place_on_device
from whatfits.profiler.trace.events import Alloc, Free
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.storages import InPlace, StorageRecorder

DIMS = {"L": 3, "h": 64, "i": 172, "a": 4, "k": 4, "d": 16, "V": 320}
SHAPE = (2, 24)
NUMBER_BYTES = 8
"""Python numbers become CPU tensors of at most this size on their way into an op, on every device."""
KERNELS_WITH_SCRATCH = {
    "aten::cumsum",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    "aten::add",
    "aten::mul",
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::convolution",
    "aten::convolution_backward",
}
"""CPU kernels that allocate and free inside one op, below what any dispatch mode can see. Arithmetic on two dtypes first
casts the narrower operand on a CPU; a CUDA kernel casts as it loads. oneDNN reorders bf16 matrices on processors that have
bf16 instructions but no matrix units, and the weights of a convolution."""
RNG_STATE_BYTES = torch.get_rng_state().nbytes
"""Checkpointing keeps the generator's state, on the host on every device."""


def train(model: nn.Module, enter: Callable[[str], None] = lambda _phase: None) -> None:
    torch.manual_seed(0)
    enter("forward")
    input_ids = torch.randint(DIMS["V"], SHAPE)
    labels = torch.randint(DIMS["V"], SHAPE)
    loss = model(input_ids=input_ids, labels=labels).loss
    enter("backward")
    loss.backward()
    enter("end")
    del loss, input_ids, labels


def make_ready_model(dtype: torch.dtype, attention: str, *, checkpointing: bool) -> nn.Module:
    """A model that has made one step, so that nothing is created for the first time."""
    options = StepOptions(
        precision="fp32" if dtype == torch.float32 else "bf16",
        checkpointing="full" if checkpointing else "none",
    )
    model: Any = build_model(DIMS, options, device="cpu")
    model.set_attn_implementation(attention)
    train(model)
    model.zero_grad()
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def one_thread_without_collector() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def reported_by_allocator(run: Callable[[], None]) -> list[int]:
    """Signed bytes of the allocator's events in a run, without what the constants above name."""
    with (
        one_thread_without_collector(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run()
    found: list[tuple[int, int, int, frozenset[tuple[str, int]]]] = []

    def walk(node: Any, inside: frozenset[tuple[str, int]]) -> None:
        kind, fields = node.typed
        if kind == _EventType.Allocation:
            found.append((node.start_time_ns, fields.alloc_size, fields.ptr, inside))
        elif kind == _EventType.TorchOp and node.name in KERNELS_WITH_SCRATCH:
            inside |= {(node.name, node.start_time_ns)}
        for child in node.children:
            walk(child, inside)

    for root in profiler.profiler.kineto_results.experimental_event_tree():
        walk(root, frozenset())
    found.sort(key=lambda event: event[0])
    scratch: set[int] = set()
    open_at: dict[int, int] = {}
    for index, (_, nbytes, pointer, inside) in enumerate(found):
        if nbytes > 0:
            open_at[pointer] = index
        elif pointer in open_at:
            start = open_at.pop(pointer)
            if inside & found[start][3]:
                scratch |= {start, index}
    kept = [event[1] for index, event in enumerate(found) if index not in scratch]
    return [n for n in kept if abs(n) > NUMBER_BYTES and abs(n) != RNG_STATE_BYTES]


def seen_by_recorder(model: nn.Module, in_place: InPlace) -> list[int]:
    recorder = StorageRecorder(
        device_type="cpu",
        current_module=lambda: "",
        temporaries=lambda *_: [],
        in_place=in_place,
        scalar_answer=None,
    )
    for tensor in [*model.parameters(), *model.buffers()]:
        recorder.ignore(tensor)
    with one_thread_without_collector(), recorder:
        train(model, lambda phase: setattr(recorder, "phase", phase))
    sizes = {token.block: token.nbytes for token in recorder.tokens if isinstance(token, Alloc)}
    signed = [
        token.nbytes if isinstance(token, Alloc) else -sizes[token.block]
        for token in recorder.tokens
        if isinstance(token, Alloc | Free)
    ]
    return [n for n in signed if abs(n) > NUMBER_BYTES]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_allocation_and_free_in_order(dtype: torch.dtype, attention: str, checkpointing: bool) -> None:
    model = make_ready_model(dtype, attention, checkpointing=checkpointing)
    expected = reported_by_allocator(partial(train, model))
    seen = seen_by_recorder(
        make_ready_model(dtype, attention, checkpointing=checkpointing), in_place_on_device
    )

    assert seen == expected
    assert max(accumulate(seen)) == max(accumulate(expected)) > 0


def test_without_the_accumulation_rule_the_recorder_sees_allocations_that_do_not_happen() -> None:
    model = make_ready_model(torch.bfloat16, "sdpa", checkpointing=False)
    expected = reported_by_allocator(partial(train, model))
    seen = seen_by_recorder(
        make_ready_model(torch.bfloat16, "sdpa", checkpointing=False), lambda *_args: None
    )

    assert len(seen) > len(expected)
