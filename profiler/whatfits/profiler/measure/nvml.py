"""What NVIDIA's management library knows of the GPUs: who they are, who uses them, how fast they run. Needs no torch.

Everything a device may not support is None where it does not. Source: the NVML API reference, and nvidia-ml-py, whose
functions are a `Library`.

    NvmlError
    |-- NvmlUnavailableError    no package, no driver, or they do not go together
    `-- UnknownGpuError         no GPU of that name
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from whatfits.profiler.measure.nvml_library import Library, NvmlError, NvmlUnavailableError, load_library

__all__ = [
    "THROTTLE_REASONS",
    "DeviceMemory",
    "Gpu",
    "GpuProcess",
    "Library",
    "Nvml",
    "NvmlError",
    "NvmlUnavailableError",
    "UnknownGpuError",
    "open_nvml",
]

Read = TypeVar("Read")

THROTTLE_REASONS = (
    "GpuIdle",
    "ApplicationsClocksSetting",
    "SwPowerCap",
    "HwSlowdown",
    "SyncBoost",
    "SwThermalSlowdown",
    "HwThermalSlowdown",
    "HwPowerBrakeSlowdown",
    "DisplayClockSetting",
)
"""NVML's names without `nvmlClocksThrottleReason`, of bits 0, 1, 2, ..."""
_HZ_OF_MHZ = 1_000_000
_WATTS_OF_MILLIWATTS = 1e-3


class UnknownGpuError(NvmlError):
    """No GPU of that index or UUID."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no GPU {name!r} here; there are {', '.join(known) or 'none'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes of a device."""

    total_bytes: int
    """As NVML counts them; CUDA reports less."""
    used_bytes: int
    """In use by all processes; with the driver's own where `reserved_bytes` is None."""
    reserved_bytes: int | None
    """Held by driver and firmware; None where the driver is too old to tell them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process on a device. In a container its id may be the one that the host knows it by."""

    pid: int
    used_bytes: int | None


class Gpu:
    """One device.

    Attributes:
        index: NVML's, in the order of the PCI bus.
        uuid: such as `GPU-8932f937-d72c-4106-c12f-20bd9faed9f6`.
        name: such as `NVIDIA H100 80GB HBM3`.
        compute_capability: such as `9.0`.
    """

    def __init__(self, library: Library, handle: Any, index: int) -> None:  # Any: ctypes
        self._library = library
        self._handle = handle
        self.index = index
        self.uuid = self._ask(lambda: library.nvmlDeviceGetUUID(handle)) or f"index {index}"
        self.name = self._ask(lambda: library.nvmlDeviceGetName(handle)) or "unknown"
        capability = self._ask(lambda: library.nvmlDeviceGetCudaComputeCapability(handle))
        self.compute_capability = None if capability is None else "{}.{}".format(*capability)

    def memory(self) -> DeviceMemory | None:
        """What is in use now."""
        library, handle = self._library, self._handle
        new = self._ask(lambda: library.nvmlDeviceGetMemoryInfo(handle, library.nvmlMemory_v2))
        if new is not None:
            return DeviceMemory(
                total_bytes=int(new.total), used_bytes=int(new.used), reserved_bytes=int(new.reserved)
            )
        old = self._ask(lambda: library.nvmlDeviceGetMemoryInfo(handle))
        if old is None:
            return None
        return DeviceMemory(total_bytes=int(old.total), used_bytes=int(old.used), reserved_bytes=None)

    def processes(self) -> tuple[GpuProcess, ...] | None:
        """Who uses the device; one that computes and draws is named once."""
        library = self._library
        # The unversioned functions raise what is no NVMLError when the driver is older than the package.
        computing = self._ask_either(
            library.nvmlDeviceGetComputeRunningProcesses_v3, library.nvmlDeviceGetComputeRunningProcesses_v2
        )
        drawing = self._ask_either(
            library.nvmlDeviceGetGraphicsRunningProcesses_v3, library.nvmlDeviceGetGraphicsRunningProcesses_v2
        )
        if computing is None and drawing is None:
            return None
        listed = {
            int(each.pid): GpuProcess(pid=int(each.pid), used_bytes=each.usedGpuMemory)
            for each in (*(drawing or ()), *(computing or ()))
        }
        return tuple(listed[pid] for pid in sorted(listed))

    def foreign_processes(self, own: Iterable[int]) -> tuple[GpuProcess, ...]:
        """Processes on the device besides our own."""
        ours = frozenset(own)
        return tuple(process for process in self.processes() or () if process.pid not in ours)

    def process_bytes(self, pid: int) -> int | None:
        """Device bytes of one process."""
        return next((each.used_bytes for each in self.processes() or () if each.pid == pid), None)

    def sm_clock_hz(self) -> float | None:
        """Clock of the multiprocessors."""
        megahertz = self._ask(
            lambda: self._library.nvmlDeviceGetClockInfo(self._handle, self._library.NVML_CLOCK_SM)
        )
        return None if megahertz is None else float(megahertz) * _HZ_OF_MHZ

    def power_watts(self) -> float | None:
        """Board power."""
        milliwatts = self._ask(lambda: self._library.nvmlDeviceGetPowerUsage(self._handle))
        return None if milliwatts is None else milliwatts * _WATTS_OF_MILLIWATTS

    def temperature_celsius(self) -> float | None:
        """Of the GPU."""
        library, handle = self._library, self._handle
        degrees = self._ask(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU))
        return None if degrees is None else float(degrees)

    def throttle_reasons(self) -> tuple[str, ...] | None:
        """Reasons for lower clocks that hold now, by NVML's names; a newer bit by its number."""
        library = self._library
        mask = self._ask_either(
            library.nvmlDeviceGetCurrentClocksEventReasons, library.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        if mask is None:
            return None
        bits = [bit for bit in range(int(mask).bit_length()) if mask >> bit & 1]
        return tuple(THROTTLE_REASONS[bit] if bit < len(THROTTLE_REASONS) else f"bit {bit}" for bit in bits)

    def _ask_either(
        self, new: Callable[[Any], Read], old: Callable[[Any], Read]
    ) -> Read | None:  # Any: a handle
        """A function, or the one that older drivers have."""
        answer = self._ask(lambda: new(self._handle))
        return self._ask(lambda: old(self._handle)) if answer is None else answer

    def _ask(self, question: Callable[[], Read]) -> Read | None:
        try:
            return question()
        except self._library.NVMLError:
            return None


class Nvml:
    """The management library, initialised."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def driver(self) -> str | None:
        """Version of the driver."""
        try:
            return self._library.nvmlSystemGetDriverVersion()
        except self._library.NVMLError:
            return None

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU of the machine, in NVML's order; one that is lost is left out.

        Raises:
            NvmlUnavailableError: the driver does not even say how many there are.
        """
        try:
            count = self._library.nvmlDeviceGetCount()
        except self._library.NVMLError as error:
            raise _silent(error) from error
        found = []
        for index in range(count):
            with contextlib.suppress(self._library.NVMLError):
                found.append(Gpu(self._library, self._library.nvmlDeviceGetHandleByIndex(index), index))
        return tuple(found)

    def gpu(self, name: str | int) -> Gpu:
        """The GPU of an index or a UUID, which may be cut short, and may lack its `GPU-`, as torch gives it.

        Raises:
            UnknownGpuError: there is none.
        """
        gpus = self.gpus()
        text = str(name).strip()
        if text.isdecimal():
            found = [gpu for gpu in gpus if gpu.index == int(text)]
        else:
            found = [gpu for gpu in gpus if text and gpu.uuid.startswith((text, f"GPU-{text}"))]
        if len(found) == 1:
            return found[0]
        if text.startswith("MIG-"):
            with contextlib.suppress(self._library.NVMLError):
                return Gpu(self._library, self._library.nvmlDeviceGetHandleByUUID(text), len(gpus))
        raise UnknownGpuError(text, (f"{gpu.index} ({gpu.uuid})" for gpu in gpus))

    def visible_gpus(self, visible_devices: str | None) -> tuple[Gpu, ...]:
        """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order.

        Source: CUDA C++ Programming Guide, environment variables: indices or UUIDs; the first that names nothing ends
            the list.
        Assumes: CUDA counts as NVML does, which holds for GPUs of one kind and under CUDA_DEVICE_ORDER=PCI_BUS_ID.
        """
        if visible_devices is None:
            return self.gpus()
        chosen = list[Gpu]()
        for name in visible_devices.split(","):
            try:
                chosen.append(self.gpu(name))
            except UnknownGpuError:
                break
        return tuple(chosen)


@contextmanager
def open_nvml(library: Library | None = None) -> Iterator[Nvml]:
    """The management library, for as long as the context lasts.

    Raises:
        NvmlUnavailableError: it does not answer here.
    """
    used = load_library() if library is None else library
    try:
        used.nvmlInit()
    except used.NVMLError as error:
        raise _silent(error) from error
    try:
        yield Nvml(used)
    finally:
        with contextlib.suppress(used.NVMLError):
            used.nvmlShutdown()


def _silent(error: Exception) -> NvmlUnavailableError:
    return NvmlUnavailableError(f"the NVIDIA driver does not answer: {error}")
