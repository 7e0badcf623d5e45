"""What rules about ops are written in: memory steps, an op's arguments, and the GPU they speak of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from whatfits.estimator.profile.formulas import evaluate_call
from whatfits.estimator.profile.scratch import DEFAULT_SMS, DEFAULT_THREADS_PER_SM
from whatfits.profiler.trace.storages import DeviceStep

__all__ = [
    "H100",
    "Arguments",
    "Gpu",
    "Rule",
    "current_gpu",
    "free",
    "kernels_of",
    "output",
    "scratch",
    "take",
]

Arguments = dict[str, Any]
"""An op's arguments by the names of its schema, defaults filled in."""
Rule = Callable[[Arguments, Any], list[DeviceStep]]
"""Of an op's arguments and its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What a GPU's kernels size their scratch by: multiprocessors, resident threads of each, compute capability."""

    sms: int
    threads_per_sm: int
    capability: int


H100 = Gpu(sms=DEFAULT_SMS, threads_per_sm=DEFAULT_THREADS_PER_SM, capability=9)
_gpu: ContextVar[Gpu] = ContextVar("gpu", default=H100)


@contextmanager
def kernels_of(gpu: Gpu) -> Iterator[None]:
    """Let `device_steps` speak of this GPU. Assumes: attention kernels as on an H100."""
    token = _gpu.set(gpu)
    try:
        yield
    finally:
        _gpu.reset(token)


def current_gpu() -> Gpu:
    """The GPU of the running trace."""
    return _gpu.get()


def output(number: int) -> DeviceStep:
    """The op's own output of this number is allocated."""
    return DeviceStep("output", number)


def take(nbytes: int) -> DeviceStep:
    """A temporary is allocated."""
    return DeviceStep("allocate", int(nbytes))


def scratch(name: str, *arguments: int, maybe: bool = False) -> DeviceStep:
    """A temporary is allocated whose bytes are a formula of the estimator's, of this GPU."""
    gpu = current_gpu()
    symbols = {"sms": gpu.sms, "threads_per_sm": gpu.threads_per_sm}
    return DeviceStep("allocate", int(evaluate_call(name, symbols, arguments)), (name, *arguments), maybe)


def free(step: int) -> DeviceStep:
    """The temporary that the step of this number allocated is freed."""
    return DeviceStep("free", step)
