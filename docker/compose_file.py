"""docker-compose.yml and the Dockerfiles it names, as facts: read with Docker Compose's own parser, so that nothing drifts."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ComposeError", "ImageFacts", "Port", "Service", "read_compose", "read_image", "start_order"]

ROOT = Path(__file__).resolve().parents[1]


class ComposeError(Exception):
    """Docker Compose refuses the file, or it says something that cannot be followed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of a container and where it is published."""

    host_address: str
    published: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is run and with what around it."""

    name: str
    image: str
    dockerfile: Path | None
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]
    """The command that says whether it is well; empty without one."""
    conditions: Mapping[str, str]
    """Service it waits for -> `service_healthy` or `service_completed_successfully`."""
    ports: tuple[Port, ...]
    raw: Mapping[str, Any]  # Any: the service as JSON, as Docker Compose resolved it


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """The last stage of a Dockerfile."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    health: tuple[str, ...]
    environment: Mapping[str, str]
    user: str


def read_compose(
    file: Path = ROOT / "docker-compose.yml",
    *,
    env_file: Path = ROOT / "docker/check.env",
    profiles: Sequence[str] = ("*",),
) -> dict[str, Service]:
    """The services of a file, by name.

    Raises:
        ComposeError: Docker Compose refuses the file; the message is its own.
    """
    program = Path(sys.executable).parent / "docker-compose"
    chosen = [option for profile in profiles for option in ("--profile", profile)]
    command = [
        str(program),
        "--file",
        str(file),
        "--env-file",
        str(env_file),
        *chosen,
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    if done.returncode:
        raise ComposeError(done.stderr.strip())
    # What is printed can be read as a compose file again, so each dollar sign is doubled.
    document = json.loads(done.stdout.replace("$$", "$"))
    return {name: _service(name, raw) for name, raw in document["services"].items()}


def read_image(dockerfile: Path) -> ImageFacts:
    """What a Dockerfile's last stage sets.

    Raises:
        ComposeError: It says it in another form than JSON lists.
    """
    joined = (ROOT / dockerfile).read_text().replace("\\\n", " ")
    instructions: dict[str, str] = {}
    for line in joined.rpartition("\nFROM ")[2].splitlines()[1:]:
        name, _, rest = line.partition(" ")
        instructions[name] = rest.strip()
    health = instructions.get("HEALTHCHECK", "").partition("CMD ")[2]
    environment = dict(pair.split("=", 1) for pair in shlex.split(instructions.get("ENV", "")))
    return ImageFacts(
        entrypoint=_json_list(instructions["ENTRYPOINT"]),
        command=_json_list(instructions["CMD"]),
        health=_json_list(health) if health else (),
        environment=environment,
        user=instructions["USER"],
    )


def start_order(services: Mapping[str, Service]) -> tuple[Service, ...]:
    """Services, each after those that it waits for."""
    placed: dict[str, Service] = {}

    def place(name: str) -> None:
        for other in services[name].conditions:
            if other not in placed:
                place(other)
        placed[name] = services[name]

    for name in services:
        place(name)
    return tuple(placed.values())


def _service(name: str, raw: Mapping[str, Any]) -> Service:  # Any: as above
    dockerfile = raw.get("build", {}).get("dockerfile")
    test = raw.get("healthcheck", {}).get("test") or ["NONE"]
    if test[0] not in ("CMD", "NONE"):
        raise ComposeError(f"{name}: a health check is a list that starts with CMD, not {test}")
    ports = tuple(_port(name, port) for port in raw.get("ports", ()))
    return Service(
        name=name,
        image=raw["image"],
        dockerfile=Path(dockerfile) if dockerfile else None,
        command=tuple(raw.get("command") or ()),
        environment=raw.get("environment", {}),
        health=tuple(test[1:]),
        conditions={other: wait["condition"] for other, wait in raw.get("depends_on", {}).items()},
        ports=ports,
        raw=raw,
    )


def _port(name: str, raw: Mapping[str, Any]) -> Port:  # Any: as above
    if "host_ip" not in raw:
        raise ComposeError(f"{name}: port {raw['target']} is published on every address of the host")
    return Port(host_address=raw["host_ip"], published=int(raw["published"]), target=raw["target"])


def _json_list(text: str) -> tuple[str, ...]:
    if not re.fullmatch(r"\[.*\]", text):
        raise ComposeError(f"{text!r} is not a list in JSON")
    return tuple(json.loads(text))
