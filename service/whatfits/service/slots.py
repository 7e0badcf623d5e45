"""What one agent has of its machine: some GPUs of one kind, or the CPU; held against others for as long as it lives."""

import fcntl
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from whatfits.estimator.catalog import resolve_gpu
from whatfits.estimator.errors import InputError, WhatfitsError
from whatfits.estimator.specs.device_queues import CPU_QUEUE, gpu_queue
from whatfits.profiler.measure.nvml import Gpu, Library, Nvml, NvmlError, open_nvml

__all__ = [
    "Slot",
    "SlotTakenError",
    "SlotUnavailableError",
    "find_slot",
    "hold",
    "machine_slots",
    "users_of",
]

_NAME = re.compile(r"gpu(\d{1,3})(?:-(\d{1,3}))?")
_ACCEPTED = "cpu, or gpu with the numbers of GPUs of this machine, such as gpu0 or gpu0-7"


class SlotUnavailableError(WhatfitsError):
    """The machine has no such devices, or its driver does not answer."""


class SlotTakenError(WhatfitsError):
    """Somebody uses the devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Devices that are used together, by one measurement at a time."""

    name: str
    queue: str
    device_name: str
    gpu_uuids: tuple[str, ...] = ()

    @property
    def visible_devices(self) -> tuple[str, ...] | None:
        """What CUDA is to see; nothing on a CPU."""
        return self.gpu_uuids or None


def find_slot(name: str, nvml: Nvml | None) -> Slot:
    """The devices that a name such as `gpu0-7` means.

    Args:
        name: As on the command line.
        nvml: The driver; None where there is none.

    Raises:
        InputError: It is no such name.
        SlotUnavailableError: The machine has no such GPUs, or they are not alike.
    """
    if name == "cpu":
        return Slot(name=name, queue=CPU_QUEUE, device_name=platform.processor() or platform.machine())
    match = _NAME.fullmatch(name)
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise InputError("slot", name, _ACCEPTED)
    if nvml is None:
        raise SlotUnavailableError(f"{name}: no NVIDIA driver answers on this machine")
    try:
        gpus = [nvml.gpu(index) for index in range(int(match[1]), int(match[2] or match[1]) + 1)]
    except NvmlError as error:
        raise SlotUnavailableError(f"{name}: {error}") from error
    return _slot_of(name, gpus)


def machine_slots(nvml: Nvml | None) -> tuple[str, ...]:
    """A slot for each GPU of the machine, or the CPU where there is none."""
    gpus = () if nvml is None else nvml.gpus()
    return tuple(f"gpu{gpu.index}" for gpu in gpus) or ("cpu",)


@contextmanager
def hold(slot: Slot, folder: Path | None = None) -> Iterator[None]:
    """Hold a slot's GPUs against other agents of this machine; the system lets go when the process ends.

    Args:
        slot: What is held; a CPU is shared.
        folder: Where the locks are, the same for all agents.

    Raises:
        SlotTakenError: Another agent has one of them.
    """
    with ExitStack() as held:
        for uuid in slot.gpu_uuids:
            held.enter_context(_lock(uuid, folder or Path(tempfile.gettempdir())))
        yield


def users_of(slot: Slot, library: Library | None = None) -> tuple[str, ...]:
    """Who uses the GPUs of a slot, in words; to be asked while no measurement of ours runs."""
    if not slot.gpu_uuids:
        return ()
    try:
        with open_nvml(library) as nvml:
            gpus = [nvml.gpu(uuid) for uuid in slot.gpu_uuids]
            return tuple(
                f"process {process.pid} on GPU {gpu.index}"
                for gpu in gpus
                for process in gpu.foreign_processes(())
            )
    except NvmlError as error:
        return (f"by nobody knows whom: {error}",)


def _slot_of(name: str, gpus: Sequence[Gpu]) -> Slot:
    kinds = sorted({gpu.name for gpu in gpus})
    if len(kinds) > 1:
        raise SlotUnavailableError(f"{name}: its GPUs are not alike ({', '.join(kinds)})")
    try:
        kind = resolve_gpu(kinds[0], field="slot")[0]
    except InputError as error:
        raise SlotUnavailableError(f"{name}: the catalog has no GPU named {kinds[0]!r}") from error
    uuids = tuple(gpu.uuid for gpu in gpus)
    return Slot(name=name, queue=gpu_queue(kind.id, len(gpus)), device_name=kinds[0], gpu_uuids=uuids)


@contextmanager
def _lock(uuid: str, folder: Path) -> Iterator[None]:
    path = folder / f"whatfits-{uuid}.lock"
    try:
        # Not O_TRUNC: who holds it has written its process id. Any user's agent may lock it.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SlotUnavailableError(f"the lock {path} cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise SlotTakenError(
                f"another agent (process {holder}) measures on {uuid}; it holds {path}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
