"""A real training step on a CPU against its trace on `meta`: every precision, attention and checkpointing."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import accumulate, groupby, product
from typing import Any

import pytest
import torch
from torch import nn

from tests.profiler.trace.test_cpu_allocator import NUMBER_BYTES, reported_by_allocator
from whatfits.profiler.measure.cpu_kernels import CpuKernelTracer
from whatfits.profiler.trace.events import signed_bytes
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions

DIMS = {"L": 2, "h": 64, "i": 172, "a": 4, "k": 4, "d": 16, "V": 320}
SHAPE = (2, 24)
AUTOCAST = {"bf16_mixed": torch.bfloat16, "fp16_mixed": torch.float16}
PRECISIONS = ("fp32", "bf16", "bf16_mixed", "fp16_mixed", "bf16_master")
CHECKPOINTING = ("none", "full", "every_2", "ops")


def cases() -> Iterator[Any]:
    """Every combination; the ones that say little beyond others are slow."""
    for case in product(PRECISIONS, ("sdpa", "eager"), CHECKPOINTING):
        precision, attention, checkpointing = case
        quick = precision in ("bf16", "bf16_mixed") or (
            checkpointing in ("none", "full") and (precision != "bf16_master" or attention == "sdpa")
        )
        yield pytest.param(*case, id="-".join(case), marks=() if quick else pytest.mark.slow)


class Master:
    """fp32 copies of a bf16 model's weights with AdamW on them; its step is the end of the training step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.copies = [nn.Parameter(p.detach().float()) for p in model.parameters()]
        self.optimizer = torch.optim.AdamW(self.copies, foreach=False)

    def step(self) -> None:
        """Cast the gradients, update the copies, write them back."""
        for copy, parameter in zip(self.copies, self.model.parameters(), strict=True):
            assert parameter.grad is not None
            copy.grad = parameter.grad.float()
            parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            for copy, parameter in zip(self.copies, self.model.parameters(), strict=True):
                parameter.copy_(copy)
        self.optimizer.zero_grad()


def options_of(precision: str, attention: str, checkpointing: str) -> StepOptions:
    stored = "bf16" if precision == "bf16_master" else precision
    return StepOptions(precision=stored, attention=attention, checkpointing=checkpointing)


def real_step(model: Any, precision: str) -> Callable[[], None]:
    """A step on the CPU, made once already so that nothing is created for the first time."""
    torch.manual_seed(0)
    scaler = torch.amp.GradScaler("cpu") if precision == "fp16_mixed" else None
    master = Master(model) if precision == "bf16_master" else None

    def run() -> None:
        given = {name: torch.randint(DIMS["V"], SHAPE) for name in ("input_ids", "labels")}
        with torch.autocast("cpu", dtype=AUTOCAST[precision]) if precision in AUTOCAST else nullcontext():
            loss = model(**given).loss
        (scaler.scale(loss) if scaler else loss).backward()
        if master:
            master.step()
        del loss, given

    run()
    model.zero_grad()
    return run


def traced_step(options: StepOptions, precision: str) -> list[int]:
    """Signed bytes of the same step's trace."""
    model = build_model(DIMS, options)
    master = Master(model) if precision == "bf16_master" else None
    tracer = CpuKernelTracer(model, options)
    end = master.step if master else None
    if master:  # its first step makes the optimizer's states
        tracer.micro_batch(*SHAPE, before_end=end)
        for copy in master.copies:
            tracer.recorder.ignore(copy)
    parts = tracer.micro_batch(*SHAPE, before_end=end)
    signed = signed_bytes(token for part in parts.values() for token in part)
    return [n for n in signed if abs(n) > NUMBER_BYTES]


def with_frees_in_order(events: list[int]) -> list[int]:
    """Frees that follow each other sorted: autocast drops its kept casts in the order of a hash table."""
    groups = groupby(events, key=lambda nbytes: nbytes > 0)
    return [n for is_alloc, group in groups for n in (group if is_alloc else sorted(group))]


@pytest.mark.parametrize(("precision", "attention", "checkpointing"), tuple(cases()))
def test_a_real_step_equals_its_trace(precision: str, attention: str, checkpointing: str) -> None:
    options = options_of(precision, attention, checkpointing)

    run = real_step(build_model(DIMS, options, device="cpu"), precision)
    real = reported_by_allocator(run)
    trace = traced_step(options, precision)

    assert max(accumulate(trace)) == max(accumulate(real)) > 0
    assert with_frees_in_order(trace) == with_frees_in_order(real)
