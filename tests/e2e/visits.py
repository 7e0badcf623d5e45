"""A page in a browser, watched."""

import os
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page


class Visit:
    """A page and everything that went wrong while it was open."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.addresses.append(request.url))

    # Playwright's message type differs between its synchronous and asynchronous halves.
    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def save(self, name: str) -> None:
        """Keep a picture where WHATFITS_SCREENSHOTS names a folder."""
        folder = os.environ.get("WHATFITS_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
