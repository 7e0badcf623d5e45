"""The API with a fake planner behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.service.app import create_app
from whatfits.service.settings import Settings


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def api(planner: FakePlanner, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(
        create_app(Settings(database_url=f"sqlite:///{tmp_path}/api.db"), planner=planner)
    ) as client:
        yield client
