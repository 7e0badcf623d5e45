"""What a device holds beside the allocator's blocks, and how sure each constant is. All in bytes.

Recorded on one device or ranges of published figures, as each says, until a machine's own driver is measured.
"""

from dataclasses import dataclass

from whatfits.estimator.profile.scratch import DEFAULT_SMS, DEFAULT_THREADS_PER_SM
from whatfits.estimator.specs import GpuSpec
from whatfits.estimator.units import GIB, MIB

__all__ = [
    "ALLOCATOR_OVERHEAD",
    "CONTEXT_RECORDED_ON",
    "FSDP_OVERHEAD",
    "LARGEST_BLOCK_OVERHEAD",
    "REPLAY_ERROR",
    "TOTAL_ESTIMATE_ERROR",
    "Interval",
    "communicator_bytes",
    "context_bytes",
    "cublas_workspace_bytes",
    "gpu_symbols",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """Median with the bounds of a 90% interval."""

    low: float
    median: float
    high: float


ALLOCATOR_OVERHEAD = Interval(0.0, 0.035, 0.08)
"""Fraction of allocated bytes that segments add at the smallest capacity that completes, where no replay ran.
Source: LLaMA steps replayed at their smallest sufficient cap needed +0.5% to +7.3% where the logits are small beside the
rest. Assumed: the median."""

LARGEST_BLOCK_OVERHEAD = Interval(0.0, 0.7, 1.4)
"""What segments add besides, per byte of the largest block a micro-batch allocates, in general the fp32 logits: their freed
segments do not fit what comes after. Source: 108 replays of 60M to 8B models at their smallest sufficient cap
(benchmarks/segments.py): 96% need no more than 8% of allocated + 1.4 blocks, 55% no more than 3.5% + 0.7 blocks, the most is
+43%. 26 caps found on an H100 (benchmarks/gpu_recordings, `caps`) needed up to +39%, each within the same bounds."""

FSDP_OVERHEAD = Interval(-0.03, 0.06, 0.20)
"""The same under FSDP, with the error of the gather and reduce columns. Source: torchtitan's Llama 3.1 8B runs on
H100 reserve 19 to 23% over allocated without a limit. Assumed: the bounds; pools per stream are not modelled yet."""

REPLAY_ERROR = Interval(-0.005, 0.0, 0.015)
"""Fraction of allocated bytes by which a replayed step may be off. Source: the smallest caps under which 26 steps
completed on an H100, found by bisection (benchmarks/gpu_recordings, `caps`), lay 0.1% below to 1.4% above the replayed
ones; the same step's own boundary moves by as much with the addresses the driver hands out."""

TOTAL_ESTIMATE_ERROR = 0.02
"""Half width of the 90% interval of a device total that is not from a device's own report. Assumed."""

CONTEXT_RECORDED_ON = "9.0"
"""Compute capability of the device whose context was recorded."""

_HOPPER = 9
_THREADS_PER_SM = {"7.5": 1024, "8.6": 1536, "8.9": 1536, "12.0": 1536, "12.1": 1536}
"""Where it is not 2048."""


def context_bytes(gpu: GpuSpec) -> Interval:
    """CUDA context and lazily loaded kernels of one training process.

    Source: on compute capability 9.0, recorded beside reserved on an H100 with torch 2.11 and driver 580
    (benchmarks/gpu_recordings, `speed`): 527 MiB before the first kernel, 767 MiB in the first training run, 12 MiB more
    after 100 runs of other models and optimizers, and once 96 MiB more where GaLore's decomposition loads its library.
    Elsewhere 0.47 to 0.92 GiB on A100-80GB (stas00/ml-engineering); 426 MiB on RTX 6000 Ada with torch 2.10
    (unslothai/unsloth-zoo#1053); 274 MiB lazy (pytorch/pytorch#86509).
    Assumes: where nothing was recorded, the median in the middle of these.
    """
    if gpu.compute_capability == CONTEXT_RECORDED_ON:
        return Interval(740 * MIB, 775 * MIB, 900 * MIB)
    return Interval(300 * MIB, 620 * MIB, 950 * MIB)


def communicator_bytes(num_gpus: int) -> Interval:
    """NCCL buffers of the one communicator of a data-parallel run; nothing on a single GPU.

    Source: 544 MB for 2 and 688 MB for more GPUs on A100 with NVLink (NVIDIA/nccl#964); 1 to 2 GiB at
    initialisation with all protocols (stas00/ml-engineering).
    Assumes: the median between the two.
    """
    if num_gpus == 1:
        return Interval(0.0, 0.0, 0.0)
    return Interval(0.5 * GIB, 1.0 * GIB, 2.0 * GIB)


def gpu_symbols(gpu: GpuSpec) -> dict[str, int]:
    """What sizes of kernels' scratch depend on: streaming multiprocessors and the threads one of them holds.

    Source: CUDA C++ Programming Guide, table of technical specifications per compute capability.
    Assumes: Hopper's where the catalog or the table has nothing, as for other vendors' devices.
    """
    threads = _THREADS_PER_SM.get(gpu.compute_capability, DEFAULT_THREADS_PER_SM)
    return {"sms": gpu.sms or DEFAULT_SMS, "threads_per_sm": threads}


def cublas_workspace_bytes(gpu: GpuSpec) -> int:
    """One cuBLAS workspace: 8,519,680 bytes, 32 MiB from compute capability 9.0; a training process has two.

    One belongs to the forward thread, one to autograd's.

    Source: aten/src/ATen/cuda/CublasHandlePool.cpp `parseChosenWorkspaceSize`; both sizes seen in recorded device
    histories of torch 2.1 to 2.11.
    Assumes: Blackwell and other vendors' devices as Hopper, CUBLAS_WORKSPACE_CONFIG unset.
    """
    major = gpu.compute_capability.partition(".")[0]
    hopper_or_newer = not major.isdigit() or int(major) >= _HOPPER
    return 32 * MIB if hopper_or_newer else 8_519_680
