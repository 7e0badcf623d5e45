"""The real server on a real port, and Chromium in front of it."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.visits import Visit
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings

# Chromium as root in a closed network: no sandbox, and nothing that phones home.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Debian's name and the others it goes by."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def server_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the server's database."""
    return f"sqlite:///{tmp_path_factory.mktemp('server')}/pages.db"


@pytest.fixture(scope="module")
def server_address(server_database: str) -> Iterator[str]:
    """The whole product, served on a free loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(build_server_app(Settings(database_url=server_database)), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, closed at the end of a file: while it is open, its event loop counts as running in this thread."""
    chromium = find_chromium()
    if chromium is None:
        if os.environ.get("WHATFITS_REQUIRE_BROWSER"):
            pytest.fail("WHATFITS_REQUIRE_BROWSER is set, but there is no Chromium: apt-get install chromium")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield Visit(context)
    context.close()


@pytest.fixture
def visit_without_scripts(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(java_script_enabled=False)
    yield Visit(context)
    context.close()


@pytest.fixture
def visit_on_a_phone(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    yield Visit(context)
    context.close()
