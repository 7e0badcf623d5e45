"""The server that tests run on: gone with whoever started it, and missed loudly where it is required."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import postgres

STARTER = """
import sys
from tests.postgres import find_binaries, running_server
with running_server(find_binaries()) as server:
    print(server.port, server.folder, flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).parents[3]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_until_gone(port: int) -> bool:
    deadline = time.monotonic() + 30
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not listens(port)


@pytest.mark.parametrize("killed", [True, False])
def test_the_server_goes_with_the_process_that_started_it(
    postgres_server: postgres.PostgresServer, killed: bool
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert starter.stdout is not None
    port, folder = starter.stdout.readline().split()
    assert listens(int(port))
    if killed:
        starter.kill()
    starter.communicate()
    assert wait_until_gone(int(port))
    assert Path(folder).exists() is killed  # a killed process cannot tidy up
    shutil.rmtree(folder, ignore_errors=True)


def test_without_a_server_tests_are_skipped_or_fail_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres, "find_binaries", lambda: None)
    monkeypatch.delenv(postgres.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install postgresql"), postgres.start_or_skip():
        pass
    monkeypatch.setenv(postgres.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install postgresql"), postgres.start_or_skip():
        pass
