"""The API with a fake planner behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.databases import copy_sqlite
from tests.fakes import FakePlanner
from whatfits.service.app import create_app
from whatfits.service.settings import Settings


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def api(planner: FakePlanner, ready_sqlite: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(database_url=f"sqlite:///{copy_sqlite(ready_sqlite, tmp_path)}")
    with TestClient(create_app(settings, planner=planner)) as client:
        yield client
