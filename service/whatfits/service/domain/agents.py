"""Who measures: a process on a device, as it registers itself."""

from dataclasses import dataclass

from pydantic import AwareDatetime

from whatfits.estimator.specs.base import Spec

__all__ = ["Agent", "AgentState"]


class Agent(Spec):
    """A process that measures, one at a time, on the devices of its slot."""

    id: str
    """Unique, and new whenever the process starts."""
    queue: str
    """The queue it takes measurements from, such as `gpu/h100-80gb-sxm/x8`."""
    host: str
    """The machine's name."""
    slot: str
    """Which of the machine's devices it has, such as `gpu0`."""
    gpu_uuids: tuple[str, ...] = ()
    """Of its GPUs; none on a CPU."""
    device_name: str
    """As the driver or the system names the device."""
    versions: dict[str, str]
    """Versions of the packages it measures with."""
    job_schema_version: str
    """The form of measurements that it understands."""
    started_at: AwareDatetime
    """When the process started."""
    heartbeat_at: AwareDatetime
    """When it last said that it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """An agent, and whether it was heard lately."""

    agent: Agent
    live: bool
