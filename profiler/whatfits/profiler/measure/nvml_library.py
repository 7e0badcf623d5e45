"""The part of nvidia-ml-py that is used, as a protocol, so that a stand-in can take its place. Needs no torch."""

from importlib import import_module
from typing import Any, Protocol, cast

__all__ = ["Library", "NvmlError", "NvmlUnavailableError", "load_library"]


class NvmlError(Exception):
    """A GPU that cannot be asked."""


class NvmlUnavailableError(NvmlError):
    """The management library does not answer on this machine."""


class Library(Protocol):
    """The part of pynvml that is used. Any: handles and ctypes structures."""

    NVMLError: type[Exception]
    NVML_CLOCK_SM: int
    NVML_TEMPERATURE_GPU: int
    nvmlMemory_v2: int  # noqa: N815  (pynvml's name, as below)

    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: Any) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int: ...  # noqa: A002, N802
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int: ...  # noqa: N802


def load_library() -> Library:
    """The package, which finds the driver when it is initialised.

    Raises:
        NvmlUnavailableError: it is not installed.
    """
    try:
        return cast("Library", import_module("pynvml"))
    except ImportError as error:
        raise NvmlUnavailableError(
            "nvidia-ml-py is not installed here: pip install 'whatfits[agent]'"
        ) from error
