"""Record what any PyTorch step would allocate and free on a CUDA device, from tensors on `meta`."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from whatfits.profiler.trace.autocast import CUDA, autocast_on_meta
from whatfits.profiler.trace.cuda_differences import cuda_semantics, in_place_on_device
from whatfits.profiler.trace.events import Alloc, Phase, Token, signed_bytes
from whatfits.profiler.trace.memory_steps import H100, Gpu, kernels_of
from whatfits.profiler.trace.storages import StorageRecorder
from whatfits.profiler.trace.temporaries import device_steps

__all__ = ["Recording", "record_events"]

Step = Callable[[Callable[[Phase], None]], Any]
"""What is recorded. It is given a function that says which phase begins, and calls it for "backward" at the latest
before the backward pass: the device adds gradients in place there. What it returns stays alive until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The events of a step: its tokens in order, and the bytes of the blocks that existed before it, by block."""

    tokens: tuple[Token, ...]
    existing_bytes: dict[int, int]

    def signed_bytes(self) -> list[int]:
        """Bytes of each allocation, negated for each free, in order."""
        return signed_bytes(self.tokens, self.existing_bytes)


def record_events(step: Step, *, existing: Iterator[torch.Tensor], gpu: Gpu = H100) -> Recording:
    """Run a step on `meta` as a CUDA device would run it and record every allocation and free.

    Args:
        step: forward, backward, optimizer, whatever is to be recorded.
        existing: all tensors from before that the step reads or replaces: parameters, buffers, inputs, states. An
            iterator, which keeps none of them alive: the end of a replaced one is an event.
        gpu: the device whose kernels run.
    """
    recorder = StorageRecorder(
        device_type="meta",
        current_module=lambda: "",
        temporaries=device_steps,
        in_place=in_place_on_device,
        scalar_answer=lambda _scalar: True,
    )
    existing_bytes = {recorder.adopt(tensor): tensor.untyped_storage().nbytes() for tensor in existing}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would free tensors at moments of its own
    try:
        with cuda_semantics(), autocast_on_meta(CUDA), kernels_of(gpu), recorder:
            held = step(lambda phase: setattr(recorder, "phase", phase))
            tokens = recorder.tokens
            recorder.start_part()
        del held
    finally:
        if was_enabled:
            gc.enable()
    nothing = {
        t.block for t in tokens if isinstance(t, Alloc) and not t.nbytes
    }  # places of scratch not needed here
    return Recording(tokens=tuple(t for t in tokens if t.block not in nothing), existing_bytes=existing_bytes)
