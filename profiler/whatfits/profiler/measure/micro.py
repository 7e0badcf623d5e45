"""Single kernels, timed: `python -m whatfits.profiler.measure.micro --device cpu`, JSON lines on standard output.

Each line is `{"event": "kernel", "kernel": {KernelTimes}}`; the first is `{"event": "environment", "environment": {...}}`,
the last `{"event": "done"}`. Under torchrun the collectives run too, and rank 0 writes. A kernel that the device cannot
run, or has no memory for, is left out. On a CPU sizes are tiny: it is the same code in small.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from time import perf_counter

import torch
import torch.distributed as dist

from whatfits.estimator.specs.kernel_times import KernelTimes
from whatfits.profiler.answers import claim_standard_output, write_answer
from whatfits.profiler.measure.driver import measured_environment
from whatfits.profiler.measure.kernels import Kernel, kernels_of

__all__ = ["main", "time_kernel"]

_WARMUP = 3
_SECONDS = 0.06
"""For the samples of one kernel: short ones are called more often, up to `_MOST_SAMPLES`."""
_FEWEST_SAMPLES, _MOST_SAMPLES = 5, 60
_RENDEZVOUS = timedelta(seconds=60)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every kernel of a device whose name contains a text."""
    parser = argparse.ArgumentParser(description="time single kernels")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args(arguments)
    answers = claim_standard_output()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = "cuda" if options.device == "gpu" else "cpu"
    num_ranks = _join_group(device)
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    if is_first:
        environment = measured_environment(device, None).model_dump(mode="json")
        write_answer(answers, {"event": "environment", "environment": environment})
    for times in _time_all(device, num_ranks, options.only):
        if is_first:
            write_answer(answers, {"event": "kernel", "kernel": times.model_dump(mode="json")})
    if dist.is_initialized():
        dist.destroy_process_group()
    if is_first:
        write_answer(answers, {"event": "done"})
    return 0


def time_kernel(kernel: Kernel, device: str) -> KernelTimes:
    """Every sample of one kernel.

    A collective is called as often on every rank, or they would wait for each other for ever.
    """
    call = kernel.prepare(device)
    for _ in range(_WARMUP):
        call()
    (once,) = _sample(call, 1, device)
    count = _FEWEST_SAMPLES if kernel.is_collective else int(_SECONDS / max(once, 1e-9))
    samples = _sample(call, min(max(count, _FEWEST_SAMPLES), _MOST_SAMPLES), device)
    return KernelTimes(
        kernel=kernel.name,
        shape=kernel.shape,
        dtype=kernel.dtype,
        samples_seconds=tuple(samples),
        flops=kernel.flops,
        bytes=kernel.nbytes,
    )


def _time_all(device: str, num_ranks: int, name_contains: str) -> Iterator[KernelTimes]:
    for kernel in kernels_of(device, num_ranks):
        if name_contains not in kernel.name:
            continue
        try:
            yield time_kernel(kernel, device)
        except (RuntimeError, NotImplementedError) as error:  # out of memory is one
            if kernel.is_collective:
                raise  # the other ranks wait
            print(f"{kernel.name} {kernel.shape}: {error}", file=sys.stderr)
        if device == "cuda":
            torch.cuda.empty_cache()


def _sample(call: Callable[[], object], count: int, device: str) -> list[float]:
    """Seconds of so many calls: on a GPU by CUDA events, and waited for once."""
    if device == "cpu":
        samples = []
        for _ in range(count):
            start = perf_counter()
            call()
            samples.append(perf_counter() - start)
        return samples
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
    torch.cuda.synchronize()
    for first, last in pairs:
        first.record()
        call()
        last.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(last) * 1e-3 for first, last in pairs]


def _join_group(device: str) -> int:
    """Ranks of the group that torchrun started; 1 without it."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks > 1:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_RENDEZVOUS)
    return num_ranks


if __name__ == "__main__":
    sys.exit(main())
