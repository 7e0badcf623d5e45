"""Names of queues: one for each kind of device that agents have, and how many of it are used together."""

from whatfits.estimator.specs.measurement import MeasureDevice, MeasureRequest

__all__ = ["CPU_QUEUE", "gpu_queue", "queue_name"]

CPU_QUEUE = "cpu/x1"
"""Of CPUs, which are all one kind."""


def gpu_queue(gpu: str, num_gpus: int) -> str:
    """The queue of so many GPUs of one kind, by its catalog id, such as `gpu/h100-80gb-sxm/x8`."""
    return f"gpu/{gpu}/x{num_gpus}"


def queue_name(request: MeasureRequest) -> str:
    """The queue of the devices that can run a request whose hardware is resolved."""
    if request.device is MeasureDevice.CPU:
        return CPU_QUEUE
    hardware = request.spec.hardware
    return gpu_queue(hardware.gpu, min(hardware.num_gpus, hardware.gpus_per_node))
