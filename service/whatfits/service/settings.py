"""The server's settings: one frozen object, read from `WHATFITS_*` environment variables or given by the caller."""

import ipaddress
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from whatfits.estimator.errors import InputError
from whatfits.estimator.profile.store import user_data_folder
from whatfits.estimator.units import MIB
from whatfits.service.storage.agents import STALE_AFTER
from whatfits.service.storage.database import parse_database_url
from whatfits.service.trace_limits import TraceLimits

_LIMITS = TraceLimits()


def default_database_url() -> str:
    """A file in the user's folder."""
    return f"sqlite:///{user_data_folder() / 'whatfits.db'}"


class Settings(BaseSettings):
    """What the server may be told from outside. It has no API keys yet, hence loopback only."""

    model_config = SettingsConfigDict(env_prefix="WHATFITS_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on; only loopback addresses are accepted, because there are no API keys yet."""
    published_on: Literal["loopback"] | None = None
    """Of a server in a container: where its port is published. Said to be `loopback`, it may listen on any address there."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 asks the system for a free one."""
    max_body_bytes: int = Field(default=MIB, gt=0)
    """Largest request body read; a larger one is answered with 413."""
    database_url: str = Field(default_factory=default_database_url, repr=False)
    """Where measurements are kept: `sqlite:///FILE` or `postgresql://...`; it may hold a password, so it is never shown."""
    trace_timeout_seconds: float = Field(default=_LIMITS.timeout_seconds, gt=0)
    """Wall-clock time that tracing a model for a question may take; of each structure class where a plan needs several."""
    trace_memory_bytes: int = Field(default=_LIMITS.memory_bytes, gt=0)
    """Memory that the process which traces may allocate."""
    max_traces: int = Field(default=_LIMITS.max_children, gt=0)
    """Models traced at a time; further ones wait."""
    heartbeat_seconds: float = Field(default=3.0, gt=0)
    """Between two signs of life of an agent."""
    stale_after_seconds: float = Field(default=STALE_AFTER.total_seconds(), gt=0)
    """Silence after which an agent counts as gone, and what it had is given to others."""
    reap_seconds: float = Field(default=5.0, gt=0)
    """Between two searches for what agents that are gone have left."""
    queue_poll_seconds: float = Field(default=0.5, gt=0)
    """Between two looks of an agent into its queue."""
    store_patience_seconds: float = Field(default=120.0, gt=0)
    """How long an agent waits for a store that does not take what it measured."""
    lock_folder: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Where agents of one machine keep the locks of its GPUs."""
    log_json: bool = False
    """Write log lines as JSON (for machines) and not as text (for people)."""

    @property
    def stale_after(self) -> timedelta:
        """The same silence as a span of time."""
        return timedelta(seconds=self.stale_after_seconds)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: str) -> str:
        parse_database_url(url)
        return url


def check_host(host: str, *, published_on: Literal["loopback"] | None = None) -> str:
    """Return `host` if only this machine can reach it: by its address, or as whoever published the port declares.

    A container's own loopback cannot be published, so a server in one has to listen elsewhere.

    Raises:
        InputError: `host` is reachable from other machines; without API keys that is refused.
    """
    if published_on == "loopback" or is_loopback(host):
        return host
    accepted = (
        "a loopback address (127.0.0.1, ::1 or localhost): the server has no API keys yet, so it does not listen "
        "elsewhere. In a container whose port is published on 127.0.0.1 alone, WHATFITS_PUBLISHED_ON=loopback says so"
    )
    raise InputError(field="host", value=host, accepted=accepted)


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine and no other."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
