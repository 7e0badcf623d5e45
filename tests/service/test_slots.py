"""What an agent has of its machine, on a fake driver below the real pynvml."""

from pathlib import Path

import pytest

from tests.fake_driver import FakeDriver, FakeGpu, load_pynvml
from tests.fleet.scripts import run_scripted
from whatfits.estimator.errors import InputError
from whatfits.estimator.specs.device_queues import CPU_QUEUE
from whatfits.profiler.measure.nvml import open_nvml
from whatfits.service.agent import run_agent
from whatfits.service.settings import Settings
from whatfits.service.slots import (
    Slot,
    SlotTakenError,
    SlotUnavailableError,
    find_slot,
    hold,
    machine_slots,
    users_of,
)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(gpus=[FakeGpu(uuid=f"GPU-{letter}") for letter in "abcd"])


def find(driver: FakeDriver, name: str) -> Slot:
    with open_nvml(load_pynvml(driver)) as nvml:
        return find_slot(name, nvml)


def test_a_gpu_is_a_slot_in_the_queue_of_its_kind(driver: FakeDriver) -> None:
    assert find(driver, "gpu1") == Slot(
        name="gpu1", queue="gpu/h100-80gb-sxm/x1", device_name="NVIDIA H100 80GB HBM3", gpu_uuids=("GPU-b",)
    )


def test_several_gpus_are_one_slot_and_cuda_sees_those_alone(driver: FakeDriver) -> None:
    slot = find(driver, "gpu1-3")

    assert (slot.queue, slot.visible_devices) == ("gpu/h100-80gb-sxm/x3", ("GPU-b", "GPU-c", "GPU-d"))


def test_the_cpu_is_a_slot_without_a_driver() -> None:
    slot = find_slot("cpu", None)

    assert (slot.queue, slot.visible_devices) == (CPU_QUEUE, None)


@pytest.mark.parametrize("name", ["", "gpu", "gpu-1", "gpu2-1", "GPU0", "cpu0", "gpu0,1", "gpu0\n"])
def test_other_names_are_refused_naming_what_is_accepted(driver: FakeDriver, name: str) -> None:
    with pytest.raises(InputError, match=r"slot: .* accepted: cpu, or gpu with the numbers"):
        find(driver, name)


def test_a_gpu_that_is_not_there_is_refused_naming_those_that_are(driver: FakeDriver) -> None:
    with pytest.raises(SlotUnavailableError, match=r"gpu3-4: no GPU '4' here; there are 0 \(GPU-a\)"):
        find(driver, "gpu3-4")


def test_a_machine_without_a_driver_has_no_gpu_slot() -> None:
    with pytest.raises(SlotUnavailableError, match="gpu0: no NVIDIA driver answers"):
        find_slot("gpu0", None)


def test_gpus_of_two_kinds_are_no_slot(driver: FakeDriver) -> None:
    driver.gpus[1].name = "NVIDIA A100-SXM4-80GB"

    with pytest.raises(SlotUnavailableError, match="not alike"):
        find(driver, "gpu0-1")


def test_a_gpu_that_the_catalog_does_not_know_is_no_slot(driver: FakeDriver) -> None:
    driver.gpus[0].name = "Voodoo 2"

    with pytest.raises(SlotUnavailableError, match="the catalog has no GPU named 'Voodoo 2'"):
        find(driver, "gpu0")


def test_every_gpu_of_a_machine_is_a_slot_or_else_its_cpu(driver: FakeDriver) -> None:
    with open_nvml(load_pynvml(driver)) as nvml:
        assert machine_slots(nvml) == ("gpu0", "gpu1", "gpu2", "gpu3")
    assert machine_slots(None) == ("cpu",)


def test_a_gpu_is_held_by_one_agent_and_let_go_afterwards(driver: FakeDriver, tmp_path: Path) -> None:
    first, overlapping = find(driver, "gpu0-1"), find(driver, "gpu1-2")

    with hold(first, tmp_path):
        with pytest.raises(SlotTakenError, match=r"another agent \(process \d+\) measures on GPU-b"):
            hold(overlapping, tmp_path).__enter__()
        with hold(find(driver, "gpu2"), tmp_path):
            pass
    with hold(overlapping, tmp_path):
        pass


def test_who_uses_a_gpu_is_named(driver: FakeDriver) -> None:
    driver.gpus[1].processes = {4242: 10**9}

    assert users_of(find(driver, "gpu0"), load_pynvml(driver)) == ()
    assert users_of(find(driver, "gpu0-1"), load_pynvml(driver)) == ("process 4242 on GPU 1",)


def test_a_driver_that_does_not_answer_is_not_taken_for_a_free_gpu(driver: FakeDriver) -> None:
    slot = find(driver, "gpu0")
    driver.fails_to_start = 9

    (user,) = users_of(slot, load_pynvml(driver))

    assert "the NVIDIA driver does not answer" in user


def test_an_agent_does_not_start_on_a_gpu_that_others_use(driver: FakeDriver, tmp_path: Path) -> None:
    driver.gpus[0].processes = {4242: 10**9}
    settings = Settings(database_url=f"sqlite:///{tmp_path}/w.db", lock_folder=tmp_path)

    with pytest.raises(SlotTakenError, match="gpu0 is in use: process 4242 on GPU 0"):
        run_agent(settings, "gpu0", run=run_scripted, library=load_pynvml(driver))


def test_a_second_agent_does_not_start_on_the_same_gpu(driver: FakeDriver, tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/w.db", lock_folder=tmp_path)

    with hold(find(driver, "gpu0"), tmp_path), pytest.raises(SlotTakenError, match="another agent"):
        run_agent(settings, "gpu0", run=run_scripted, library=load_pynvml(driver))
