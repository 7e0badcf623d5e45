"""What is asked of the driver, through the real pynvml; what a device cannot tell is None."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from tests.fake_driver import NOT_AVAILABLE, FakeDriver, FakeGpu, load_pynvml
from whatfits.estimator.units import GIB, MIB
from whatfits.profiler.measure.gpu_readings import GpuReadings, find_monitor
from whatfits.profiler.measure.nvml import (
    THROTTLE_REASONS,
    DeviceMemory,
    GpuProcess,
    Library,
    Nvml,
    NvmlUnavailableError,
    UnknownGpuError,
    open_nvml,
)

FIRST, SECOND = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-8a2bd1a0-0000-4106-c12f-20bd9faed9f6"


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(gpus=[FakeGpu(uuid=FIRST), FakeGpu(uuid=SECOND, name="NVIDIA A100-SXM4-80GB")])


@pytest.fixture
def nvml(driver: FakeDriver) -> Iterator[Nvml]:
    with open_nvml(load_pynvml(driver)) as opened:
        yield opened


def test_the_library_is_open_for_as_long_as_it_is_used(driver: FakeDriver) -> None:
    with open_nvml(load_pynvml(driver)) as nvml:
        assert driver.is_open
        assert nvml.driver == "580.95.05"
    assert not driver.is_open


def test_a_gpu_says_who_it_is(nvml: Nvml) -> None:
    first, second = nvml.gpus()

    assert (first.index, first.uuid, first.name) == (0, FIRST, "NVIDIA H100 80GB HBM3")
    assert (second.index, second.uuid, second.name) == (1, SECOND, "NVIDIA A100-SXM4-80GB")
    assert first.compute_capability == "9.0"


@pytest.mark.parametrize(
    ("name", "uuid"),
    [(0, FIRST), ("1", SECOND), (FIRST, FIRST), ("GPU-8a", SECOND), (FIRST.removeprefix("GPU-"), FIRST)],
)
def test_a_gpu_is_found_by_index_and_uuid(nvml: Nvml, name: str | int, uuid: str) -> None:
    assert nvml.gpu(name).uuid == uuid


@pytest.mark.parametrize("name", ["2", "GPU-8", "GPU-ffff", "", "-1", "MIG-12"])
def test_a_name_that_is_none_or_several_is_refused_with_what_there_is(nvml: Nvml, name: str) -> None:
    with pytest.raises(
        UnknownGpuError, match=rf"no GPU '{name}' here; there are 0 \({FIRST}\), 1 \({SECOND}\)"
    ):
        nvml.gpu(name)


def test_a_slice_of_a_gpu_is_found_by_its_uuid(driver: FakeDriver, nvml: Nvml) -> None:
    """The stand-in lists it as a device, which the driver does not; it is asked for by its UUID alone."""
    driver.gpus[1].lost = True
    driver.gpus[1].uuid = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"

    assert nvml.gpu("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f").uuid.startswith("MIG-c6d4")


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [FIRST, SECOND]),
        ("", []),
        ("1,0", [SECOND, FIRST]),
        ("GPU-8a,GPU-89", [SECOND, FIRST]),
        ("0,7,1", [FIRST]),
        ("-1", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(
    nvml: Nvml, visible: str | None, uuids: list[str]
) -> None:
    assert [gpu.uuid for gpu in nvml.visible_gpus(visible)] == uuids


def test_a_lost_gpu_leaves_the_others(driver: FakeDriver, nvml: Nvml) -> None:
    driver.gpus[0].lost = True

    assert [gpu.uuid for gpu in nvml.gpus()] == [SECOND]


def test_a_driver_that_cannot_count_its_gpus_does_not_answer() -> None:
    driver = FakeDriver(unsupported=frozenset({"nvmlDeviceGetCount_v2"}))

    with open_nvml(load_pynvml(driver)) as nvml, pytest.raises(NvmlUnavailableError, match="Not Supported"):
        nvml.gpus()
    assert find_monitor({}, load_pynvml(driver)) is None


def test_memory_in_use_is_told_apart_from_the_drivers_own(driver: FakeDriver, nvml: Nvml) -> None:
    gpu = nvml.gpu(0)
    assert gpu.memory() == DeviceMemory(total_bytes=80 * GIB, used_bytes=4 * MIB, reserved_bytes=600 * MIB)


def test_an_older_driver_counts_its_own_as_used() -> None:
    old = FakeDriver(gpus=[FakeGpu(uuid=FIRST)], missing=frozenset({"nvmlDeviceGetMemoryInfo_v2"}))
    with open_nvml(load_pynvml(old)) as nvml:
        memory = nvml.gpu(0).memory()

    assert memory == DeviceMemory(total_bytes=80 * GIB, used_bytes=604 * MIB, reserved_bytes=None)


def test_foreign_processes_are_those_of_others(driver: FakeDriver, nvml: Nvml) -> None:
    gpu = nvml.gpu(0)
    assert gpu.processes() == ()
    driver.gpus[0].processes = {11: 3 * GIB, 12: NOT_AVAILABLE}
    driver.gpus[0].drawing = {10: MIB, 11: MIB}

    assert gpu.processes() == (
        GpuProcess(pid=10, used_bytes=MIB),
        GpuProcess(pid=11, used_bytes=3 * GIB),
        GpuProcess(pid=12, used_bytes=None),
    )
    assert [process.pid for process in gpu.foreign_processes([11])] == [10, 12]
    assert gpu.process_bytes(11) == 3 * GIB
    assert gpu.process_bytes(99) is None


def test_an_older_driver_is_asked_by_its_own_functions() -> None:
    new = frozenset(
        {
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses_v3",
            "nvmlDeviceGetCurrentClocksEventReasons",
        }
    )
    old = FakeDriver(gpus=[FakeGpu(uuid=FIRST, processes={11: GIB}, reasons=4)], missing=new)
    with open_nvml(load_pynvml(old)) as nvml:
        assert nvml.gpu(0).processes() == (GpuProcess(pid=11, used_bytes=GIB),)
        assert nvml.gpu(0).throttle_reasons() == ("SwPowerCap",)


def test_clocks_power_and_temperature_are_in_base_units(nvml: Nvml) -> None:
    gpu = nvml.gpu(0)

    assert gpu.sm_clock_hz() == 1.98e9
    assert gpu.power_watts() == 350.5
    assert gpu.temperature_celsius() == 45.0


def test_throttle_reasons_are_named(driver: FakeDriver, nvml: Nvml) -> None:
    gpu = nvml.gpu(0)
    assert gpu.throttle_reasons() == ()
    driver.gpus[0].reasons = 0b1000_0000_0100_0100

    assert gpu.throttle_reasons() == ("SwPowerCap", "HwThermalSlowdown", "bit 15")


def test_the_names_of_reasons_are_nvmls() -> None:
    for bit, name in enumerate(THROTTLE_REASONS):
        assert getattr(pynvml, f"nvmlClocksEventReason{name}") == 1 << bit


@pytest.mark.parametrize("kind", ["missing", "unsupported"])
def test_what_a_device_cannot_tell_is_none(kind: str) -> None:
    always = {"nvmlInitWithFlags", "nvmlShutdown", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"}
    names = {name for name in vars(pynvml) if name.startswith("nvml")} | {
        "nvmlDeviceGetMemoryInfo_v2",
    }
    driver = FakeDriver(gpus=[FakeGpu(uuid=FIRST)])
    setattr(driver, kind, frozenset(names - always))
    with open_nvml(load_pynvml(driver)) as nvml:
        assert nvml.driver is None
        gpu = nvml.gpu(0)
        assert (gpu.uuid, gpu.name, gpu.compute_capability) == ("index 0", "unknown", None)
        told = (
            gpu.memory(),
            gpu.processes(),
            gpu.sm_clock_hz(),
            gpu.power_watts(),
            gpu.temperature_celsius(),
            gpu.throttle_reasons(),
            gpu.process_bytes(1),
        )
        assert told == (None,) * 7
        assert gpu.foreign_processes(()) == ()
        with GpuReadings(gpu) as readings:
            pass
        read = (readings.clocks, readings.device_used_bytes, readings.process_used_bytes)
        assert read == (None, None, None)


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="needs a machine without NVIDIA's driver")
def test_without_a_driver_the_real_library_says_so() -> None:
    with pytest.raises(NvmlUnavailableError, match="NVML Shared Library Not Found"), open_nvml():
        pass


def test_a_driver_that_does_not_start_is_said() -> None:
    driver = FakeDriver(fails_to_start=int(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))

    with pytest.raises(NvmlUnavailableError, match="version mismatch"), open_nvml(load_pynvml(driver)):
        pass


def test_every_function_and_constant_used_is_pynvmls_with_the_same_parameters() -> None:
    functions = [name for name in vars(Library) if name.startswith("nvml")]
    assert len(functions) > 15
    for name in functions:
        # What pynvml decorates for its text says `args`.
        real = inspect.signature(inspect.unwrap(getattr(pynvml, name)))
        ours = inspect.signature(getattr(Library, name))
        assert list(real.parameters) == list(ours.parameters)[1:], name
    for name in ("NVML_CLOCK_SM", "NVML_TEMPERATURE_GPU", "nvmlMemory_v2"):
        assert isinstance(getattr(pynvml, name), int)
    assert issubclass(pynvml.NVMLError_NotSupported, pynvml.NVMLError)


def test_the_driver_is_asked_without_torch() -> None:
    program = (
        "import sys, whatfits.profiler.measure.gpu_readings, whatfits.service.measure_child\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr
