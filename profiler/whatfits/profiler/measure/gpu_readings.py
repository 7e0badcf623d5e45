"""What the driver reports of a GPU while something runs on it, read by a thread beside it."""

import contextlib
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from whatfits.estimator.specs.measurement import ClockReadings
from whatfits.profiler.measure.nvml import Gpu, Library, NvmlUnavailableError, open_nvml

__all__ = ["GpuMonitor", "GpuReadings", "find_monitor"]

_INTERVAL_SECONDS = 0.1
_MOST_SAMPLES = 512


class GpuReadings:
    """A context manager: reads at its start, at its end and ten times a second in between.

    Of a long run every second sample is dropped, and the interval doubled, as often as 512 are kept; the highest bytes
    and the reasons for lower clocks are of all of them.

    Attributes:
        device_used_bytes: highest use of the device over all processes.
        process_used_bytes: highest use by this process.
    """

    def __init__(
        self, gpu: Gpu, *, pid: int | None = None, interval_seconds: float = _INTERVAL_SECONDS
    ) -> None:
        """Read a GPU; `pid` is the process whose bytes are read, this one when left out."""
        self._gpu = gpu
        self._pid = os.getpid() if pid is None else pid
        self._interval_seconds = interval_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gpu-readings", daemon=True)
        self._samples: list[tuple[float | None, float | None, float | None]] = []
        self._reasons: dict[str, None] = {}
        self.device_used_bytes: int | None = None
        self.process_used_bytes: int | None = None

    def __enter__(self) -> Self:
        self.read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.read()

    @property
    def clocks(self) -> ClockReadings | None:
        """Clocks, power, temperature and reasons; None where the device tells none of them."""
        columns = [
            tuple(value for value in column if value is not None)
            for column in zip(*self._samples, strict=True)
        ]
        if not any(columns) and not self._reasons:
            return None
        clock, power, temperature = columns
        return ClockReadings(
            sm_clock_hz=clock,
            power_watts=power,
            temperature_celsius=temperature,
            throttle_reasons=tuple(self._reasons),
        )

    def read(self) -> None:
        """Take one sample."""
        gpu = self._gpu
        memory = gpu.memory()
        self.device_used_bytes = _higher(self.device_used_bytes, memory.used_bytes if memory else None)
        self.process_used_bytes = _higher(self.process_used_bytes, gpu.process_bytes(self._pid))
        self._reasons |= dict.fromkeys(gpu.throttle_reasons() or ())
        self._samples.append((gpu.sm_clock_hz(), gpu.power_watts(), gpu.temperature_celsius()))
        if len(self._samples) > _MOST_SAMPLES:
            self._samples = self._samples[::2]
            self._interval_seconds *= 2

    def _follow(self) -> None:
        while not self._ended.wait(self._interval_seconds):
            self.read()


def _higher(known: int | None, read: int | None) -> int | None:
    if known is None or read is None:
        return read if known is None else known
    return max(known, read)


class GpuMonitor:
    """What the driver tells of one GPU, for the whole of a process: bytes now, or the highest once it samples."""

    def __init__(
        self, gpu: Gpu, *, pid: int | None = None, library: contextlib.ExitStack | None = None
    ) -> None:
        """Watch a GPU.

        Args:
            gpu: which one.
            pid: the process whose bytes are read, this one when left out.
            library: closes the management library, and does so when nothing refers to it any more.
        """
        self._gpu = gpu
        self._library = library
        self._pid = os.getpid() if pid is None else pid
        self._readings = GpuReadings(gpu, pid=self._pid)
        self._started = False
        self._sampling = contextlib.ExitStack()

    def device_used_bytes(self) -> int | None:
        """Bytes in use on the device, by all processes."""
        if self._started:
            return self._readings.device_used_bytes
        memory = self._gpu.memory()
        return None if memory is None else memory.used_bytes

    def process_used_bytes(self) -> int | None:
        """Bytes in use on the device, by this process."""
        if self._started:
            return self._readings.process_used_bytes
        return self._gpu.process_bytes(self._pid)

    def start(self) -> None:
        """Begin to sample in the background."""
        self._started = True
        self._sampling.enter_context(self._readings)

    def stop(self) -> ClockReadings | None:
        """End that; clocks, power, temperature and reasons for lower clocks, None of what was never started."""
        self._sampling.close()
        return self._readings.clocks if self._started else None


def find_monitor(
    environment: Mapping[str, str] = os.environ, library: Library | None = None
) -> GpuMonitor | None:
    """A monitor of the GPU that this process uses, until the process ends; None where the driver does not answer.

    That is the one of LOCAL_RANK, which torchrun sets, of those that CUDA_VISIBLE_DEVICES leaves. Nothing here asks
    CUDA, so that what its context takes can be told.
    """
    kept = contextlib.ExitStack()
    try:
        nvml = kept.enter_context(open_nvml(library))
        gpus = nvml.visible_gpus(environment.get("CUDA_VISIBLE_DEVICES"))
    except NvmlUnavailableError:
        return None
    rank = int(environment.get("LOCAL_RANK", "0"))
    if rank >= len(gpus):
        kept.close()
        return None
    return GpuMonitor(gpus[rank], library=kept)
