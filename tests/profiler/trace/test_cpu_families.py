"""Real training steps of many families on a CPU against their traces on `meta`, with attention written out."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn

from tests.profiler.trace.test_cpu_allocator import NUMBER_BYTES, reported_by_allocator
from tests.profiler.trace.tiny_configs import VOCAB, tiny_config
from whatfits.profiler.measure.cpu_kernels import CpuKernelTracer
from whatfits.profiler.trace.config_inputs import micro_batch_of
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.events import signed_bytes
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions

DIMS = {"b": 2, "s": 24, "t": 16}
SPECIAL = 10
"""Token ids below this mean something to some model."""
FAST = ("gpt2", "mixtral", "bert", "vit")
FAMILIES = (*FAST, "gpt_neox", "opt", "bloom", "phi", "phi3", "gemma2", "gemma3_text", "mistral", "qwen3", "olmo2",
            "stablelm", "qwen3_moe", "deepseek_v3", "roberta", "distilbert", "t5", "bart", "whisper", "deit", "clip")  # fmt: skip

EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3")
"""Their grouped matrix products are of bf16 alone on `meta`."""


def cases() -> Iterator[Any]:
    """One quick family of a kind; the others are slow."""
    for family in FAMILIES:
        yield pytest.param(family, id=family, marks=() if family in FAST else pytest.mark.slow)


def fill(given: dict[str, Any], num_labels: int) -> None:
    """Values for the inputs, in place: numbers, token ids, classes."""
    for value in given.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.normal_()
        elif isinstance(value, torch.Tensor):
            value.random_(*((SPECIAL, VOCAB) if value.ndim == 2 else (0, num_labels)))


def real_step(model: Any) -> Callable[[], None]:
    """A step on the CPU, made once already so that nothing is created for the first time."""
    torch.manual_seed(0)

    def run() -> None:
        given = micro_batch_of(model, DIMS, torch.device("cpu"))
        fill(given, model.config.num_labels)
        loss = model(**given).loss
        loss.backward()
        del loss, given

    run()
    model.zero_grad()
    return run


def traced_step(model: nn.Module, options: StepOptions) -> list[int]:
    """Signed bytes of the same step's trace."""
    parts = CpuKernelTracer(model, options).micro_batch(DIMS["b"], DIMS["s"], target_len=DIMS["t"])
    signed = signed_bytes(token for part in parts.values() for token in part)
    return [n for n in signed if abs(n) > NUMBER_BYTES]


@pytest.mark.parametrize("family", tuple(cases()))
def test_the_peak_of_a_real_step_is_that_of_its_trace(family: str) -> None:
    text = tiny_config(family)
    precision = "bf16" if family in EXPERTS else "fp32"
    options = StepOptions(
        config=text, architecture=describe(text).architecture, attention="eager", precision=precision
    )

    real = reported_by_allocator(real_step(build_model({}, options, device="cpu")))
    trace = traced_step(build_model({}, options), options)

    assert max(accumulate(trace)) == max(accumulate(real)) > 0
