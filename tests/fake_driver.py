"""A stand-in for NVIDIA's driver, below the real pynvml: what is tested is how pynvml really answers.

The functions have the names and the calling convention of libnvidia-ml: outputs by reference, a status returned.
"""

import importlib.util
import sys
from collections.abc import Callable
from ctypes import c_void_p, cast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import cast as typing_cast

import pynvml

from whatfits.estimator.units import GIB, MIB
from whatfits.profiler.measure.nvml import Library

__all__ = ["FakeDriver", "FakeGpu", "load_pynvml"]

NOT_AVAILABLE = 2**64 - 1


@dataclass(kw_only=True)
class FakeGpu:
    """What a device tells; change it while it is read."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    compute_capability: tuple[int, int] = (9, 0)
    total_bytes: int = 80 * GIB
    reserved_bytes: int = 600 * MIB
    used_bytes: int = 4 * MIB
    processes: dict[int, int] = field(default_factory=dict)
    """Device bytes by process."""
    drawing: dict[int, int] = field(default_factory=dict)
    """The same, of those that draw."""
    clock_megahertz: int = 1980
    power_milliwatts: int = 350_500
    temperature: int = 45
    reasons: int = 0
    lost: bool = False


@dataclass(kw_only=True)
class FakeDriver:
    """The functions of libnvidia-ml that pynvml calls for us."""

    gpus: list[FakeGpu] = field(default_factory=list)
    version: str = "580.95.05"
    missing: frozenset[str] = frozenset()
    """Functions that this driver does not have."""
    unsupported: frozenset[str] = frozenset()
    """Functions that its devices do not support."""
    fails_to_start: int = 0
    """Status of the initialisation."""
    is_open: bool = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library, as ctypes looks one up."""
        function = _FUNCTIONS.get(name)
        if function is None or name in self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:  # Any: ctypes
            if not self.is_open and name != "nvmlInitWithFlags":
                return int(pynvml.NVML_ERROR_UNINITIALIZED)
            if name in self.unsupported:
                return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return function(self, *arguments)

        return call

    def gpu(self, handle: Any) -> FakeGpu:  # Any: ctypes
        """The device of a handle, whose address is its place in the list."""
        return self.gpus[int(cast(handle, c_void_p).value or 0) - 1]


def load_pynvml(driver: FakeDriver) -> Library:
    """A copy of pynvml of its own that has found this driver."""
    name = "pynvml_of_a_test"
    spec = importlib.util.spec_from_file_location(name, Path(pynvml.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # it looks itself up there to make its errors
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    module.nvmlLib = driver  # type: ignore[attr-defined] # where pynvml keeps the library it loaded
    return typing_cast("Library", module)


# Any: ctypes' references, structures and buffers, from here on.
def _init(driver: FakeDriver, _flags: int) -> int:
    driver.is_open = driver.fails_to_start == 0
    return driver.fails_to_start


def _shutdown(driver: FakeDriver) -> int:
    driver.is_open = False
    return 0


def _version(driver: FakeDriver, buffer: Any, _size: Any) -> int:
    buffer.value = driver.version.encode()
    return 0


def _count(driver: FakeDriver, count: Any) -> int:
    count._obj.value = len(driver.gpus)
    return 0


def _by_index(driver: FakeDriver, index: Any, handle: Any) -> int:
    if index.value >= len(driver.gpus):
        return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    if driver.gpus[index.value].lost:
        return int(pynvml.NVML_ERROR_GPU_IS_LOST)
    _point(handle, index.value)
    return 0


def _by_uuid(driver: FakeDriver, uuid: Any, handle: Any) -> int:
    for index, gpu in enumerate(driver.gpus):
        if gpu.uuid.encode() == uuid.value:
            _point(handle, index)
            return 0
    return int(pynvml.NVML_ERROR_NOT_FOUND)


def _point(handle: Any, index: int) -> None:
    target = handle._obj
    c_void_p.from_buffer(target).value = index + 1


def _text(name: str) -> Callable[..., int]:
    def read(driver: FakeDriver, handle: Any, buffer: Any, _size: Any) -> int:
        buffer.value = getattr(driver.gpu(handle), name).encode()
        return 0

    return read


def _number(name: str) -> Callable[..., int]:
    def read(driver: FakeDriver, handle: Any, *arguments: Any) -> int:
        arguments[-1]._obj.value = getattr(driver.gpu(handle), name)
        return 0

    return read


def _capability(driver: FakeDriver, handle: Any, major: Any, minor: Any) -> int:
    major._obj.value, minor._obj.value = driver.gpu(handle).compute_capability
    return 0


def _memory(driver: FakeDriver, handle: Any, memory: Any) -> int:
    """The first version counts what the driver holds as used."""
    gpu, told = driver.gpu(handle), memory._obj
    told.total, told.used = gpu.total_bytes, gpu.used_bytes + gpu.reserved_bytes
    told.free = told.total - told.used
    return 0


def _memory_v2(driver: FakeDriver, handle: Any, memory: Any) -> int:
    gpu, told = driver.gpu(handle), memory._obj
    told.total, told.used, told.reserved = gpu.total_bytes, gpu.used_bytes, gpu.reserved_bytes
    told.free = told.total - told.used - told.reserved
    return 0


def _processes(name: str) -> Callable[..., int]:
    def read(driver: FakeDriver, handle: Any, count: Any, listed: Any) -> int:
        running = getattr(driver.gpu(handle), name)
        room = count._obj.value
        count._obj.value = len(running)
        if len(running) > room:
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for place, (pid, nbytes) in enumerate(running.items()):
            listed[place].pid, listed[place].usedGpuMemory = pid, nbytes
        return 0

    return read


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "nvmlInitWithFlags": _init,
    "nvmlShutdown": _shutdown,
    "nvmlSystemGetDriverVersion": _version,
    "nvmlDeviceGetCount_v2": _count,
    "nvmlDeviceGetHandleByIndex_v2": _by_index,
    "nvmlDeviceGetHandleByUUID": _by_uuid,
    "nvmlDeviceGetName": _text("name"),
    "nvmlDeviceGetUUID": _text("uuid"),
    "nvmlDeviceGetCudaComputeCapability": _capability,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetMemoryInfo_v2": _memory_v2,
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes("processes"),
    "nvmlDeviceGetComputeRunningProcesses_v2": _processes("processes"),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": _processes("drawing"),
    "nvmlDeviceGetGraphicsRunningProcesses_v2": _processes("drawing"),
    "nvmlDeviceGetClockInfo": _number("clock_megahertz"),
    "nvmlDeviceGetPowerUsage": _number("power_milliwatts"),
    "nvmlDeviceGetTemperature": _number("temperature"),
    "nvmlDeviceGetCurrentClocksEventReasons": _number("reasons"),
    "nvmlDeviceGetCurrentClocksThrottleReasons": _number("reasons"),
}
