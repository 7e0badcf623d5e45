"""What differs between measuring on a GPU and on a CPU, chosen once."""

from typing import Protocol

import torch

from whatfits.estimator.specs import ClockReadings, DeviceReadings
from whatfits.profiler.measure.driver import nvml_used_bytes
from whatfits.profiler.measure.gpu_readings import find_monitor
from whatfits.profiler.measure.probes import CpuProbe, CudaProbe
from whatfits.profiler.measure.timing import CpuTimer, CudaTimer, Timer

__all__ = ["CpuDevice", "CudaDevice", "Device", "DeviceMonitor", "is_out_of_memory"]


class DeviceMonitor(Protocol):
    """What the driver tells of the device that this process uses. None is what it does not tell."""

    def device_used_bytes(self) -> int | None:
        """Bytes in use on the device, by all processes: now, or the highest once it samples."""
        ...

    def process_used_bytes(self) -> int | None:
        """Bytes in use on the device, by this process, likewise."""
        ...

    def start(self) -> None:
        """Begin to sample clocks and power, and the two figures above, in the background."""
        ...

    def stop(self) -> ClockReadings | None:
        """End that and return the samples."""
        ...


class Device(Protocol):
    """What steps run on."""

    name: str
    """As torch calls it."""

    def open(self) -> None:
        """Prepare it for this process's first tensor."""
        ...

    def make_probe(self, *, history: bool) -> CpuProbe | CudaProbe:
        """What records memory; with `history` it can give the events."""
        ...

    def make_timer(self) -> Timer:
        """What takes times."""
        ...

    def readings(self) -> DeviceReadings:
        """What the driver and the allocator have told since `open`."""
        ...


class CpuDevice:
    """A CPU: bytes of live tensors, and the process's clock."""

    name = "cpu"

    def __init__(self, memory_cap_bytes: int | None = None) -> None:
        self._cap = memory_cap_bytes

    def open(self) -> None:
        """Nothing to prepare."""

    def make_probe(self, *, history: bool) -> CpuProbe:  # noqa: ARG002  (it has one always)
        """A dispatch mode."""
        return CpuProbe(memory_cap_bytes=self._cap)

    def make_timer(self) -> Timer:
        """The process's clock."""
        return CpuTimer()

    def readings(self) -> DeviceReadings:
        """There is no driver."""
        return DeviceReadings()


class CudaDevice:
    """The process's current CUDA device."""

    name = "cuda"

    def __init__(self, memory_cap_bytes: int | None = None, monitor: DeviceMonitor | None = None) -> None:
        self._cap, self._monitor = memory_cap_bytes, monitor
        self._context_bytes: int | None = None

    def open(self) -> None:
        """Make the context, and note what it takes."""
        if self._monitor is None:
            self._monitor = find_monitor()
        before = self._used_bytes()
        torch.cuda.init()
        torch.cuda.synchronize()
        after = self._used_bytes()
        if before is not None and after is not None:
            self._context_bytes = max(after - before, 0)
        if self._cap is not None:
            total = torch.cuda.get_device_properties().total_memory
            torch.cuda.set_per_process_memory_fraction(min(self._cap / total, 1.0))

    def make_probe(self, *, history: bool) -> CudaProbe:
        """The allocator's counters, and its history if asked."""
        return CudaProbe(keeps_history=history)

    def make_timer(self) -> Timer:
        """CUDA events, and the driver's readings from the first of them on."""
        return CudaTimer() if self._monitor is None else _WatchingTimer(self._monitor)

    def readings(self) -> DeviceReadings:
        """The allocator's counts of trouble, the context, and what the driver has in use."""
        stats = torch.cuda.memory_stats()
        clocks = None if self._monitor is None else self._monitor.stop()
        return DeviceReadings(
            context_bytes=self._context_bytes,
            device_used_bytes=self._used_bytes(),
            process_used_bytes=None if self._monitor is None else self._monitor.process_used_bytes(),
            num_alloc_retries=stats.get("num_alloc_retries", 0),
            num_ooms=stats.get("num_ooms", 0),
            clocks=clocks,
        )

    def _used_bytes(self) -> int | None:
        return nvml_used_bytes() if self._monitor is None else self._monitor.device_used_bytes()


class _WatchingTimer(CudaTimer):
    """Starts a monitor with the first phase."""

    def __init__(self, monitor: DeviceMonitor) -> None:
        super().__init__()
        self._monitor = monitor

    def enter(self, phase: str, *, step: int | None = None) -> None:
        """As every timer's."""
        if not self.phases:
            self._monitor.start()
        super().enter(phase, step=step)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; on a CPU torch says so in words alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
