"""Bring up what docker-compose.yml says without Docker: its commands, environment, order and health checks, on this machine.

    python -m docker.run_without_docker --profile cpu --scale agent-cpu=2 --port 8000

Prints one line of JSON when all is up, and stops everything on SIGTERM or SIGINT. In the place of what Docker does:

* the network: names of services become 127.0.0.1, ports of containers become ports of this machine; where a service
  listens on every address of its container, here it listens where the file publishes it;
* the image postgres: the system's server, with user, password and database of its environment, passwords required;
* our images: this environment's `whatfits`, with what the Dockerfiles set, and a temporary folder as /data.

Limits (user, memory, read-only root, capabilities) and restarts are not imitated; `make images` tries the former.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from docker.compose_file import ROOT, ComposeError, Service, read_compose, read_image, start_order
from tests.postgres import PostgresServer, find_binaries, running_server

_WAIT_SECONDS = 120.0
_GRACE_SECONDS = 30.0


class StartError(Exception):
    """Something did not come up; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What addresses of containers are on this machine."""

    folder: Path
    ports: Mapping[int, int]
    names: frozenset[str]

    def translate(self, text: str) -> str:
        """A text of the compose file, with this machine's addresses and folders."""
        for name in self.names:
            text = re.sub(rf"(?<=@){name}(?=:)", "127.0.0.1", text)
        text = re.sub(r"(?<![\d.])0\.0\.0\.0(?![\d.])", "127.0.0.1", text)
        text = re.sub(r"(?<![\w.])/data(?![\w.])", str(self.folder), text)
        return re.sub(r"(?<![\w.])\d{4,5}(?![\w.])", lambda match: self._port(match[0]), text)

    def _port(self, digits: str) -> str:
        return str(self.ports.get(int(digits), digits))


@dataclass(slots=True, kw_only=True)
class Running:
    """Processes of services, newest last."""

    folder: Path
    processes: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        # The kernel ends it when this script dies, however that happens.
        tied = ["setpriv", "--pdeathsig", "TERM", *command]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(tied, env=dict(environment), cwd=self.folder, stdout=log, stderr=log)
        self.processes.append((name, process))
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def fail(self, name: str, problem: str) -> StartError:
        return StartError(f"{name} {problem}; its log ends with:\n{self.log(name).read_text()[-3000:]}")

    def stop(self) -> None:
        for _, process in reversed(self.processes):
            process.terminate()
        for _, process in reversed(self.processes):
            try:
                process.wait(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_database(service: Service, opened: ExitStack) -> PostgresServer:
    """A server set up from the variables that the image postgres reads."""
    binaries = find_binaries()
    if binaries is None:
        raise StartError("no PostgreSQL server on this machine: apt-get install postgresql")
    user, password, database = (
        service.environment[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "DB")
    )
    server = opened.enter_context(running_server(binaries))
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        role = sql.Identifier(user)
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        (server.folder / "data/pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        connection.execute("SELECT pg_reload_conf()")
    _wait(lambda: not _lets_in(server.url(database)), "PostgreSQL still asks for no password")
    return server


def bring_up(
    services: Mapping[str, Service], scale: Mapping[str, int], port: int, opened: ExitStack
) -> dict[str, object]:
    """Start all services in their order; returns what is said when they are up."""
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="whatfits-compose-")))
    running = Running(folder=folder)
    server = start_database(services["db"], opened)
    opened.callback(running.stop)
    ports = {5432: server.port}
    for published in services["service"].ports:
        ports[published.target] = port or _free_port()
    places = Places(folder=folder, ports=ports, names=frozenset(services))
    path = f"{Path(sys.executable).parent}:{find_binaries()}:/usr/bin:/bin"
    for service in start_order(services):
        environment = build_environment(service, places, path)
        if service.name != "db":
            _start(service, scale.get(service.name, 1), environment, places, running)
        if service.health:
            check = [places.translate(part) for part in service.health]
            _wait_healthy(service.name, check, environment, running)
    listening = services["service"].ports[0]
    return {
        "event": "ready",
        "url": f"http://{listening.host_address}:{ports[listening.target]}",
        "database_url": places.translate(services["service"].environment["WHATFITS_DATABASE_URL"]),
        "logs": str(folder),
        "processes": {name: process.pid for name, process in running.processes if process.poll() is None},
    }


def build_environment(service: Service, places: Places, path: str) -> dict[str, str]:
    """What the process sees: what its image sets, what the compose file sets, and the way to the programs."""
    image = read_image(service.dockerfile).environment if service.dockerfile else {}
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = ":".join(str(Path(part).resolve()) for part in kept["PYTHONPATH"].split(":"))
    given = {
        name: text if "PASSWORD" in name else places.translate(text)
        for name, text in {**image, **service.environment}.items()
    }
    return {**given, **kept, "PATH": path}


def _start(
    service: Service, copies: int, environment: Mapping[str, str], places: Places, running: Running
) -> None:
    if service.dockerfile is None:
        raise StartError(f"{service.name}: there is nothing here to stand for the image {service.image}")
    entrypoint = read_image(service.dockerfile).entrypoint
    command = [*entrypoint, *(places.translate(part) for part in service.command)]
    names = [service.name] if copies == 1 else [f"{service.name}-{number}" for number in range(1, copies + 1)]
    processes = [(name, running.start(name, command, environment)) for name in names]
    if service.raw.get("restart") != "no":
        return
    for name, process in processes:
        if process.wait(timeout=_WAIT_SECONDS):
            raise running.fail(name, f"ended with status {process.returncode}")


def _wait_healthy(name: str, check: Sequence[str], environment: Mapping[str, str], running: Running) -> None:
    def healthy() -> bool:
        for other, process in running.processes:
            if process.poll():
                raise running.fail(other, f"ended with status {process.returncode}")
        return subprocess.run(check, check=False, capture_output=True, env=dict(environment)).returncode == 0

    _wait(healthy, f"{name} is not healthy", every=0.2)


def _wait(condition: Callable[[], bool], problem: str, every: float = 0.05) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"{problem} after {_WAIT_SECONDS:.0f} s")
        time.sleep(every)


def _lets_in(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--env-file", type=Path, default=ROOT / "docker/check.env")
    parser.add_argument("--profile", action="append", default=[], help="as of docker compose")
    parser.add_argument(
        "--scale", action="append", default=[], metavar="SERVICE=N", help="as of docker compose"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="where the server is published; 0 takes a free port"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        scale = {name: int(number) for name, number in (text.split("=") for text in arguments.scale)}
        services = read_compose(env_file=arguments.env_file, profiles=arguments.profile)
        with ExitStack() as opened:
            said = bring_up(services, scale, arguments.port, opened)
            print(json.dumps(said), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except (ComposeError, StartError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
