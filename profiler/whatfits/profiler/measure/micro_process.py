"""The parent's side of the timing of kernels. Needs no torch."""

import json
import sys
from collections.abc import Callable

from pydantic import ValidationError

from whatfits.estimator.specs.kernel_times import KernelTimes, MicroBenchmark
from whatfits.estimator.specs.measurement import MeasuredEnvironment, MeasureDevice
from whatfits.profiler.child_lines import ChildEndedError, ChildLines, ChildTimeoutError
from whatfits.profiler.measure.child_process import child_environment, several_processes
from whatfits.profiler.measure.nvml import NvmlUnavailableError, open_nvml

__all__ = ["NoKernelsError", "time_kernels"]


class NoKernelsError(Exception):
    """The process that times kernels said nothing of use."""


class _Kernels:
    """Kernels as they come."""

    def __init__(self, on_kernel: Callable[[KernelTimes], object]) -> None:
        self._on_kernel = on_kernel
        self.environment: MeasuredEnvironment | None = None
        self.kernels: list[KernelTimes] = []
        self.complete = False

    def take(self, line: bytes) -> bool:
        """Whether a line says that all ran; what is no answer is passed over."""
        try:
            content = json.loads(line)
            event = content["event"]
            if event == "environment":
                self.environment = MeasuredEnvironment.model_validate(content["environment"])
            elif event == "kernel":
                self.kernels.append(KernelTimes.model_validate_json(json.dumps(content["kernel"])))
                self._on_kernel(self.kernels[-1])
            self.complete = event == "done"
        except (ValidationError, ValueError, TypeError, KeyError, RecursionError):
            return False
        return self.complete


def time_kernels(
    device: MeasureDevice,
    *,
    timeout_seconds: float,
    python: str = sys.executable,
    on_kernel: Callable[[KernelTimes], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MicroBenchmark:
    """Time the kernels of this machine's device, with collectives where it has several GPUs.

    Out of time, what ran until then is the answer.

    Raises:
        NoKernelsError: the process ended before.
    """
    program = [python, "-m", "whatfits.profiler.measure.micro", "--device", str(device)]
    num_gpus = _count_gpus() if device is MeasureDevice.GPU else 1
    command = program if num_gpus <= 1 else several_processes(program, num_gpus, python)
    taken, environment = _Kernels(on_kernel), child_environment(device, None)
    try:
        with ChildLines(command, text="", timeout_seconds=timeout_seconds, environment=environment) as child:
            child.follow(taken.take, should_stop)
    except ChildTimeoutError:
        pass
    except ChildEndedError as error:
        raise NoKernelsError(f"the process {error}") from error
    if taken.environment is None:
        raise NoKernelsError(f"nothing ran within {timeout_seconds:g} s")
    return MicroBenchmark(
        environment=taken.environment, kernels=tuple(taken.kernels), complete=taken.complete
    )


def _count_gpus() -> int:
    try:
        with open_nvml() as nvml:
            return len(nvml.gpus())
    except NvmlUnavailableError:
        return 1
