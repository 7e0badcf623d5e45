"""A PostgreSQL server for tests: the system's binaries in a folder of its own, on a free port, gone with the test process.

It starts when a test first asks for it, one for each test process. The kernel stops it when the process that started it
dies, however that happens.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

__all__ = ["PostgresServer", "binaries_or_skip", "find_binaries", "running_server", "start_or_skip"]

PACKAGE = "postgresql"
REQUIRED = "WHATFITS_REQUIRE_POSTGRES"
_START_SECONDS = 60


class PostgresServer:
    """A server with no password on 127.0.0.1; its data are worth nothing, so it does not wait for the disk."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the data folder, owned by whom the server runs as."""
        if os.getuid() == 0:
            shutil.chown(self.folder, user=_unprivileged())
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "whatfits", "-A", "trust", "-E", "UTF8",
                  "--no-locale", "--no-sync")  # fmt: skip

    def start(self) -> None:
        """Start, and return when it answers."""
        options = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "32MB", "max_connections": "100",
        }  # fmt: skip
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            command = [*_as_unprivileged(die_with_parent=True), str(self._binaries / "postgres")]
            command += ["-D", str(self.folder / "data"), *settings]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Disconnect whoever is connected and stop."""
        if self._process is not None:
            self._process.send_signal(2)  # SIGINT: fast shutdown
            self._process.wait(timeout=_START_SECONDS)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://whatfits@127.0.0.1:{self.port}/{database}"

    def create_database(self, *, template: str = "template1") -> str:
        """A new database like another one that nobody is connected to; its name."""
        name = f"test_{uuid4().hex}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        command = [*_as_unprivileged(), str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)


def find_binaries() -> Path | None:
    """The folder of the newest server that is installed; Debian keeps them apart by version."""
    initdb = shutil.which("initdb")
    if initdb is not None:
        return Path(initdb).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(path.parts[-3]), default=None)
    return None if newest is None else newest.parent


@contextmanager
def running_server(binaries: Path) -> Iterator[PostgresServer]:
    """A server that runs within the block; its folder goes with it."""
    with tempfile.TemporaryDirectory(prefix="whatfits-postgres-") as folder:
        server = PostgresServer(Path(folder), binaries)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def start_or_skip() -> Iterator[PostgresServer]:
    """The same; without binaries the test is skipped, or fails where they are required."""
    with running_server(binaries_or_skip()) as server:
        yield server


def binaries_or_skip() -> Path:
    """The folder of the server's programs; without it the test is skipped, or fails where it is required."""
    binaries = find_binaries()
    if binaries is not None:
        return binaries
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED} is set, but there is no PostgreSQL: apt-get install {PACKAGE}")
    pytest.skip(f"no PostgreSQL server on this machine: apt-get install {PACKAGE}")


def _as_unprivileged(*, die_with_parent: bool = False) -> list[str]:
    """The server refuses to run as root; setpriv (util-linux) also ties it to this process."""
    command = ["setpriv"]
    if die_with_parent:
        command += ["--pdeathsig", "INT"]
    if os.getuid() == 0:
        command += ["--reuid", _unprivileged(), "--regid", "nogroup", "--clear-groups"]
    return command if len(command) > 1 else []


def _unprivileged() -> str:
    return "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
