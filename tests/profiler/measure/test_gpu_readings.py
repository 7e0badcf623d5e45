"""What a GPU did while something ran: clocks over time, the highest bytes, every reason for lower clocks."""

import time
from collections.abc import Iterator

import pynvml
import pytest

from tests.fake_driver import FakeDriver, FakeGpu, load_pynvml
from whatfits.estimator.units import GIB, MIB
from whatfits.profiler.measure.devices import DeviceMonitor
from whatfits.profiler.measure.gpu_readings import GpuMonitor, GpuReadings, find_monitor
from whatfits.profiler.measure.nvml import Nvml, open_nvml


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(gpus=[FakeGpu(uuid="GPU-8932f937"), FakeGpu(uuid="GPU-8a2bd1a0")])


@pytest.fixture
def nvml(driver: FakeDriver) -> Iterator[Nvml]:
    with open_nvml(load_pynvml(driver)) as opened:
        yield opened


def readings_of(nvml: Nvml) -> GpuReadings:
    return GpuReadings(nvml.gpu(0), pid=11, interval_seconds=3600.0)


def test_readings_keep_the_highest_bytes_every_clock_and_every_reason(driver: FakeDriver, nvml: Nvml) -> None:
    gpu = driver.gpus[0]
    with readings_of(nvml) as readings:
        gpu.used_bytes, gpu.processes, gpu.reasons = 9 * GIB, {11: 8 * GIB, 12: 20 * GIB}, 4
        gpu.clock_megahertz = 1755
        readings.read()
        gpu.used_bytes, gpu.processes, gpu.reasons = 2 * GIB, {}, 8

    assert readings.device_used_bytes == 9 * GIB
    assert readings.process_used_bytes == 8 * GIB
    assert readings.clocks is not None
    assert readings.clocks.sm_clock_hz == (1.98e9, 1.755e9, 1.755e9)
    assert readings.clocks.power_watts == (350.5,) * 3
    assert readings.clocks.throttle_reasons == ("SwPowerCap", "HwSlowdown")


def test_readings_of_a_long_run_stay_few(driver: FakeDriver, nvml: Nvml) -> None:
    with readings_of(nvml) as readings:
        for megahertz in range(1, 3001):
            driver.gpus[0].clock_megahertz = megahertz
            readings.read()

    clocks = readings.clocks
    assert clocks is not None
    assert 256 <= len(clocks.sm_clock_hz) <= 514
    assert clocks.sm_clock_hz[-1] == 3000e6
    assert list(clocks.sm_clock_hz[1:]) == sorted(clocks.sm_clock_hz[1:])


def test_a_thread_reads_while_something_runs_and_ends_with_it(nvml: Nvml) -> None:
    read = 0

    class Counting(GpuReadings):
        def read(self) -> None:
            nonlocal read
            read += 1
            super().read()

    with Counting(nvml.gpu(0), interval_seconds=0.001) as readings:
        while read < 5:
            time.sleep(0.001)
    after = read
    assert not readings._thread.is_alive()
    assert read == after >= 6


def test_a_monitor_tells_bytes_now_until_it_samples_and_the_highest_then(
    driver: FakeDriver, nvml: Nvml
) -> None:
    gpu = driver.gpus[0]
    monitor: DeviceMonitor = GpuMonitor(nvml.gpu(0), pid=11)
    gpu.processes = {11: GIB}
    assert (monitor.device_used_bytes(), monitor.process_used_bytes()) == (4 * MIB, GIB)
    assert monitor.stop() is None

    gpu.used_bytes, gpu.processes = 9 * GIB, {11: 8 * GIB}
    monitor.start()
    gpu.used_bytes, gpu.processes = GIB, {}
    clocks = monitor.stop()

    assert (monitor.device_used_bytes(), monitor.process_used_bytes()) == (9 * GIB, 8 * GIB)
    assert clocks is not None
    assert set(clocks.power_watts) == {350.5}
    assert monitor.stop() == clocks


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "1,0", "LOCAL_RANK": "1"}, 0),
    ],
)
def test_a_process_finds_its_own_gpu(driver: FakeDriver, environment: dict[str, str], index: int) -> None:
    driver.gpus[index].used_bytes = 7 * GIB

    monitor = find_monitor(environment, load_pynvml(driver))

    assert monitor is not None
    assert monitor.device_used_bytes() == 7 * GIB


def test_a_process_without_a_gpu_has_no_monitor(driver: FakeDriver) -> None:
    silent = FakeDriver(fails_to_start=int(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))

    assert find_monitor({"CUDA_VISIBLE_DEVICES": ""}, load_pynvml(driver)) is None
    assert find_monitor({"LOCAL_RANK": "2"}, load_pynvml(driver)) is None
    assert find_monitor({}, load_pynvml(silent)) is None
